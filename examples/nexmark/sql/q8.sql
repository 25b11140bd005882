select distinct p.id, p.name, p.window_start
from (select id, name, time_bucket(interval '10 seconds', dateTime) as window_start from person) p
join (select seller, time_bucket(interval '10 seconds', dateTime) as window_start from auction) a
on p.id = a.seller and p.window_start = a.window_start
