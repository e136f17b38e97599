-- Every bid whose channel has an id: the large ones by name, the others by what their address says.
SELECT auction, bidder, price, channel, id
FROM (
    SELECT
        auction, bidder, price, channel,
        CASE lower(channel)
            WHEN 'apple' THEN '0' WHEN 'google' THEN '1' WHEN 'facebook' THEN '2' WHEN 'baidu' THEN '3'
            ELSE nullif(regexp_extract(url, '(&|^)channel_id=([^&]*)', 2), '')
        END AS id
    FROM bid
)
WHERE id IS NOT NULL
