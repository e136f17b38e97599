-- The ten highest bids for each auction, the earlier of two equal ones first.
SELECT
    auction, bidder, price, ts, extra,
    row_number() OVER (PARTITION BY auction ORDER BY price DESC, ts, bidder, extra DESC) AS place
FROM bid
QUALIFY place <= 10
