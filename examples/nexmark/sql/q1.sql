select auction, bidder, 0.908::double * price as price, dateTime, extra from bid
