-- A sale is when the last bid that counts has come; of one moment, sales come in the order of the auctions.
with won as (
    select a.id, a.seller, max(b.price) as price, max(b.dateTime) as sold
    from auction a join bid b on a.id = b.auction and b.dateTime between a.dateTime and a.expires
    group by a.id, a.seller
)
select seller, avg(price) over (
    partition by seller order by sold, id rows between 10 preceding and current row
) as average
from won
