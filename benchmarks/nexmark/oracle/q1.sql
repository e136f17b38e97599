-- Every bid in euros, in tenths of a cent: the rate is 0.908.
SELECT auction, bidder, price * 908, ts, extra FROM bid
