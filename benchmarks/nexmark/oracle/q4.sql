-- Of each category, what its auctions brought on average, in whole cents.
WITH sold AS (
    SELECT auction.id, auction.category, max(bid.price) AS price
    FROM auction JOIN bid ON bid.auction = auction.id AND bid.ts BETWEEN auction.ts AND auction.expires
    GROUP BY ALL
)
SELECT category, sum(price) // count(*) FROM sold GROUP BY category
