// Where the boxes of a graph go. Pure: numbers in, numbers out.

export const BOX = { width: 210, head: 50, line: 16 };
const GAP = { along: 96, across: 28 };

/** The chains of a graph, and the edges between them, from the API's graph of single steps. */
export function chains({ nodes, edges }) {
  const vertexOf = new Map(nodes.map((node) => [node.uid, node.vertex]));
  const boxes = new Map();
  for (const node of nodes) {
    const box = boxes.get(node.vertex) ?? { uid: node.vertex, parallelism: node.parallelism, steps: [] };
    box.steps.push(node);
    boxes.set(node.vertex, box);
  }
  const between = edges
    .map((edge) => ({ ...edge, from: vertexOf.get(edge.upstream), to: vertexOf.get(edge.downstream) }))
    .filter((edge) => edge.from !== edge.to && boxes.has(edge.from) && boxes.has(edge.to));
  return { boxes: [...boxes.values()], edges: between };
}

/** Adds x, y, width and height to each box. `direction`: "right", or "down" where there is little room. */
export function place({ boxes, edges }, direction) {
  const depth = depths(boxes, edges);
  const layers = [];
  for (const box of boxes) (layers[depth.get(box.uid)] ??= []).push({ ...box, ...sizeOf(box) });
  const placed = direction === "down" ? downwards(layers) : rightwards(layers);
  const width = Math.max(0, ...placed.map((box) => box.x + box.width));
  const height = Math.max(0, ...placed.map((box) => box.y + box.height));
  return { boxes: placed, edges, width, height };
}

/** How many edges lie before each box, on the longest way. */
function depths(boxes, edges) {
  const depth = new Map(boxes.map((box) => [box.uid, 0]));
  for (let round = 0; round < boxes.length; round += 1) {
    let moved = false;
    for (const { from, to } of edges) {
      if (depth.get(to) > depth.get(from)) continue;
      depth.set(to, depth.get(from) + 1);
      moved = true;
    }
    if (!moved) break;
  }
  return depth;
}

const sizeOf = (box) => ({ width: BOX.width, height: BOX.head + BOX.line * box.steps.length });

function rightwards(layers) {
  const tallest = Math.max(0, ...layers.map((layer) => extent(layer, "height")));
  return layers.flatMap((layer, number) => {
    let y = (tallest - extent(layer, "height")) / 2;
    return layer.map((box) => {
      const placed = { ...box, x: number * (BOX.width + GAP.along), y };
      y += box.height + GAP.across;
      return placed;
    });
  });
}

function downwards(layers) {
  const widest = Math.max(0, ...layers.map((layer) => extent(layer, "width")));
  let y = 0;
  return layers.flatMap((layer) => {
    let x = (widest - extent(layer, "width")) / 2;
    const placed = layer.map((box) => {
      const at = { ...box, x, y };
      x += box.width + GAP.across;
      return at;
    });
    y += Math.max(...layer.map((box) => box.height)) + GAP.along / 2;
    return placed;
  });
}

const extent = (layer, side) => layer.reduce((sum, box) => sum + box[side] + GAP.across, -GAP.across);

/** A curve from box to box. */
export function curve(from, to, direction) {
  if (direction === "down") {
    const [x, y] = [from.x + from.width / 2, from.y + from.height];
    const [u, v] = [to.x + to.width / 2, to.y];
    return `M${x},${y} C${x},${(y + v) / 2} ${u},${(y + v) / 2} ${u},${v}`;
  }
  const [x, y] = [from.x + from.width, from.y + from.height / 2];
  const [u, v] = [to.x, to.y + to.height / 2];
  return `M${x},${y} C${(x + u) / 2},${y} ${(x + u) / 2},${v} ${u},${v}`;
}
