-- Middling bids in euros (in tenths of a cent), the time of day, and how often the text has a "c".
SELECT
    auction, bidder, price * 908,
    CASE
        WHEN hour(epoch_ms(ts)) BETWEEN 8 AND 18 THEN 'dayTime'
        WHEN hour(epoch_ms(ts)) <= 6 OR hour(epoch_ms(ts)) >= 20 THEN 'nightTime'
        ELSE 'otherTime'
    END,
    ts, extra, length(extra) - length(replace(extra, 'c', ''))
FROM bid
WHERE price * 908 > 1000000000 AND price * 908 < 50000000000
