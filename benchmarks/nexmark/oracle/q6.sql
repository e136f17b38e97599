-- Of each seller, what the last ten auctions that closed brought on average, in whole cents.
WITH sold AS (
    SELECT auction.id, auction.seller, auction.expires, max(bid.price) AS price
    FROM auction JOIN bid ON bid.auction = auction.id AND bid.ts BETWEEN auction.ts AND auction.expires
    GROUP BY ALL
), recent AS (
    SELECT seller, price FROM sold QUALIFY row_number() OVER (PARTITION BY seller ORDER BY expires DESC, id DESC) <= 10
)
SELECT seller, sum(price) // count(*) FROM recent GROUP BY seller
