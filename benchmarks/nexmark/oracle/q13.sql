-- Every bid with what the side input says of its auction; those of which it says nothing are left out.
SELECT bid.auction, bid.bidder, bid.price, bid.ts, side.value
FROM bid JOIN side ON bid.auction % 10000 = side.key
