-- Each bidder's bids. In which windows of the clock on the wall they fall, nobody can know.
SELECT bidder, count(*) FROM bid GROUP BY bidder
