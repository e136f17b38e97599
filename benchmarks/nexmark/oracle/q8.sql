-- Who came and began to sell within the same ten seconds.
SELECT DISTINCT person.id, person.name, person.ts // 10000 * 10000
FROM person JOIN auction ON auction.seller = person.id AND auction.ts // 10000 = person.ts // 10000
