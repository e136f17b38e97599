-- Of each channel and day: the same, and the last minute in which there was a bid.
SELECT
    channel,
    strftime(epoch_ms(ts), '%Y-%m-%d') AS day,
    max(strftime(epoch_ms(ts), '%H:%M')),
    count(*),
    count(*) FILTER (price < 10000),
    count(*) FILTER (price >= 10000 AND price < 1000000),
    count(*) FILTER (price >= 1000000),
    count(DISTINCT bidder),
    count(DISTINCT bidder) FILTER (price < 10000),
    count(DISTINCT bidder) FILTER (price >= 10000 AND price < 1000000),
    count(DISTINCT bidder) FILTER (price >= 1000000),
    count(DISTINCT auction),
    count(DISTINCT auction) FILTER (price < 10000),
    count(DISTINCT auction) FILTER (price >= 10000 AND price < 1000000),
    count(DISTINCT auction) FILTER (price >= 1000000)
FROM bid GROUP BY channel, day
