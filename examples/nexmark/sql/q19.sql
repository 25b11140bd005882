with best as (
    select * from bid
    qualify row_number() over (partition by auction order by price desc, dateTime, _position) <= 10
)
select auction, list(
    {'bidder': bidder, 'price': price, 'channel': channel, 'url': url, 'dateTime': dateTime, 'extra': extra}
    order by price desc, dateTime, _position
) as best
from best group by auction
