-- Of each ten seconds, every two seconds: the auctions with the most bids.
WITH counted AS (
    SELECT auction, start, count(*) AS bids
    FROM (SELECT auction, unnest(range(ts // 2000 * 2000 - 8000, ts // 2000 * 2000 + 1, 2000)) AS start FROM bid)
    GROUP BY auction, start
)
SELECT start, auction, bids FROM counted QUALIFY bids = max(bids) OVER (PARTITION BY start)
