-- Of each auction and day: bids, in all and by the level of the price, and what the prices were.
SELECT
    auction,
    strftime(epoch_ms(ts), '%Y-%m-%d') AS day,
    count(*),
    count(*) FILTER (price < 10000),
    count(*) FILTER (price >= 10000 AND price < 1000000),
    count(*) FILTER (price >= 1000000),
    min(price),
    max(price),
    sum(price) // count(*),
    sum(price)
FROM bid GROUP BY auction, day
