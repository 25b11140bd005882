with marked as (
    select *, case when dateTime - lag(dateTime) over bids < interval '10 seconds' then 0 else 1 end as is_new
    from bid window bids as (partition by bidder order by dateTime, _position)
),
numbered as (
    select *, sum(is_new) over (partition by bidder order by dateTime, _position) as session from marked
)
select bidder, count(*) as bid_count, min(dateTime) as window_start,
    max(dateTime) + interval '10 seconds' as window_end
from numbered group by bidder, session
