-- Of each ten seconds, the highest bids.
SELECT auction, bidder, price, ts, extra FROM bid
QUALIFY price = max(price) OVER (PARTITION BY ts // 10000)
