select b.auction, b.bidder, b.price, b.dateTime, b.extra
from bid b join (
    select max(price) as maxprice, time_bucket(interval '10 seconds', dateTime) + interval '10 seconds' as window_end
    from bid group by window_end
) w on b.price = w.maxprice and b.dateTime between w.window_end - interval '10 seconds' and w.window_end
