select category, avg(final) as average
from (
    select max(b.price) as final, a.category
    from auction a join bid b on a.id = b.auction and b.dateTime between a.dateTime and a.expires
    group by a.id, a.category
)
group by category
