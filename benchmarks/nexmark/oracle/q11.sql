-- Each bidder's sessions, which end ten seconds after their last bid, and the number of bids in them.
WITH gaps AS (
    SELECT bidder, ts, ts - lag(ts) OVER (PARTITION BY bidder ORDER BY ts) > 10000 AS apart FROM bid
), numbered AS (
    SELECT bidder, ts, count(*) FILTER (apart) OVER (PARTITION BY bidder ORDER BY ts) AS session FROM gaps
)
SELECT bidder, count(*), min(ts), max(ts) + 10000 FROM numbered GROUP BY bidder, session
