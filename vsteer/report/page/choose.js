'use strict';
// What the figures are of: the families of a report, and which layer and multiplier of one is looked at first.
// Neither this file nor data.js, figures.js and alone.js draws: they also run where there is no page.

const FAMILIES = (() => {
  const known = new Map();
  for (const table of ['multiplier_curves', 'without_multiplier', 'layer_peaks']) for (const row of rows(table)) known.set(keyOf(row), Object.fromEntries(DIMENSIONS.map((name) => [name, row[name]])));
  return [...known.values()];
})();

function best(found) {
  return found.reduce((most, row) => (most === null || Math.abs(row.effect ?? 0) > Math.abs(most.effect ?? 0) ? row : most), null);
}

const layersOf = (family) => {
  const found = ascending(configurations(family).map(single).filter((layer) => layer !== null));
  return found.length ? found : ascending(ofVector('pca', {family}).map((row) => row.layer));
};

const sizesOf = (family) => ascending(steeredOnly(configurations(family)).filter((row) => row.multiplier !== null).map((row) => Math.abs(row.multiplier)));

// A family at its largest effect of a single layer, or at the layer and the size that are wished for.
function choiceOf(family, measure = 'effect', layer = undefined, size = undefined) {
  const found = steeredOnly(configurations(family));
  const alone = found.filter((row) => single(row) !== null), sizes = sizesOf(family);
  const top = best(alone.length ? alone : found), layers = layersOf(family);
  return {family, measure,
    size: size !== undefined && sizes.includes(size) ? size : top && top.multiplier !== null ? Math.abs(top.multiplier) : null,
    layer: layer !== undefined && layers.includes(layer) ? layer : top && single(top) !== null ? single(top) : layers[0] ?? null};
}

// The family that a reader sees first: of those swept over layers the one with the largest effect. An
// evaluation that measures costs is none of them, where there is another.
function firstFamily() {
  const costs = new Set(rows('capability_cost').map((row) => row.capability));
  const peaks = rows('layer_peaks'), familyOf = (row) => FAMILIES.find((family) => keyOf(family) === keyOf(row));
  const wanted = peaks.filter((row) => !costs.has(row.evaluation));
  const top = best(wanted.filter((row) => layersOf(familyOf(row)).length > 1)) ?? best(wanted) ?? best(peaks);
  return top ? familyOf(top) : FAMILIES[0] ?? null;
}
