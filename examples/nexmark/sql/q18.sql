select auction, bidder, price, channel, url, dateTime, extra
from bid
qualify row_number() over (partition by bidder, auction order by dateTime desc, _position desc) = 1
