-- Each bidder's last bid for each auction; of bids at one moment, the highest.
SELECT auction, bidder, price, channel, url, ts, extra FROM bid
QUALIFY row_number() OVER (PARTITION BY bidder, auction ORDER BY ts DESC, price DESC, extra DESC) = 1
