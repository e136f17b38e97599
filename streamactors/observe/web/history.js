// What two readings and many have in common: rates, and their recent course.

export const LENGTH = 60;
const OVER = 4; // readings: sources that look for news now and then would have it jump up and down

/** Records per second of each operator, over the last `LENGTH` readings. */
export class Rates {
  constructor() {
    this.series = new Map();
    this.single = new Map();
    this.last = null;
  }

  add(tick) {
    const before = this.last;
    this.last = { at: tick.time_ms, counts: new Map(tick.operators.map((each) => [each.uid, moved(each)])) };
    const apart = before === null ? 0 : (tick.time_ms - before.at) / 1000;
    if (apart <= 0) return;
    for (const [uid, count] of this.last.counts) this.append(uid, rate(before.counts.get(uid), count, apart));
  }

  append(uid, value) {
    const latest = last(this.single, uid, value, OVER);
    last(this.series, uid, latest.reduce((sum, each) => sum + each, 0) / latest.length, LENGTH);
  }

  of(uid) {
    return this.series.get(uid) ?? [];
  }
}

function last(series, uid, value, length) {
  const kept = [...(series.get(uid) ?? []), value].slice(-length);
  series.set(uid, kept);
  return kept;
}

/** A source takes nothing in. */
const moved = (operator) => Math.max(operator.records_in, operator.records_out);

/** A new attempt counts from nought again. */
function rate(before, now, apart) {
  if (before === undefined) return 0;
  return (now >= before ? now - before : now) / apart;
}
