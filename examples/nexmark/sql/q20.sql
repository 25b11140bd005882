select b.auction, b.bidder, b.price, b.channel, b.url, b.dateTime, b.extra,
    a.id as a_id, a.itemName as a_itemName, a.description as a_description, a.initialBid as a_initialBid,
    a.reserve as a_reserve, a.dateTime as a_dateTime, a.expires as a_expires, a.seller as a_seller,
    a.category as a_category, a.extra as a_extra
from bid b join auction a on b.auction = a.id
where a.category = 10
