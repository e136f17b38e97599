-- Every bid for an auction of category 10, with what that auction is.
SELECT
    bid.auction, bid.bidder, bid.price, bid.channel, bid.url, bid.ts, bid.extra,
    auction.item, auction.description, auction.initial_bid, auction.reserve, auction.ts, auction.expires,
    auction.seller, auction.category, auction.extra
FROM bid JOIN auction ON bid.auction = auction.id
WHERE auction.category = 10
