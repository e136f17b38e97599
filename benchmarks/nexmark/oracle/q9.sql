-- Every auction with the bid that won it: the highest, and of equal ones the earliest.
SELECT
    auction.id, auction.item, auction.reserve, auction.ts, auction.expires, auction.seller, auction.category,
    bid.bidder, bid.price, bid.ts, bid.extra
FROM auction JOIN bid ON bid.auction = auction.id AND bid.ts BETWEEN auction.ts AND auction.expires
QUALIFY row_number() OVER (PARTITION BY auction.id ORDER BY bid.price DESC, bid.ts, bid.bidder, bid.extra) = 1
