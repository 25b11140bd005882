with windows as (
    -- Each bid is in five windows of ten seconds.
    select auction, time_bucket(interval '2 seconds', dateTime) - to_seconds(2 * back) as window_start
    from bid, range(5) as backs(back)
),
counts as (select auction, window_start, count(*) as num from windows group by all)
select auction, num, window_start, window_start + interval '10 seconds' as window_end
from counts
qualify num >= max(num) over (partition by window_start)
