'use strict';
// The figures of a mechanism, which is one steering's: its vector, its layer and its multiplier.

const STEERING = ['run', 'model', 'vector', 'injected_layer', 'multiplier'];
const NO_MECHANISM = 'vsteer mechanism has put nothing of this kind beside this run: vsteer mechanism --help says how';

// The rows of one steering: that of the chosen vector, or the first one's.
function ofSteering(name, state) {
  const found = rows(name);
  const chosen = found.find((row) => row.vector === state.family?.vector) ?? found[0];
  return chosen ? found.filter((row) => STEERING.every((part) => row[part] === chosen[part])) : [];
}
const steeringWords = (row) => `Model ${row.model}, vector ${row.vector} at layer ${row.injected_layer}, multiplier ${multiplierText(row.multiplier, 'add')}.`;
const mechanismFigure = (table, rest) => ({tables: [table], about: (state) => steeringWords(ofSteering(table, state)[0]), ...rest});

Object.assign(FIGURES, {
  head_scores: mechanismFigure('node_scores', {
    axis: '',
    give(state) {
      const found = ofSteering('node_scores', state);
      if (!found.length) return NO_MECHANISM;
      const points = found.map((row) => ({layer: row.layer, head: row.kind === 'mlp' ? 'MLP' : String(row.head), place: row.kind === 'mlp' ? 1e6 : row.head,
        score: row.score, to_unembedding: row.to_unembedding, random: row.random}));
      const control = found.find((row) => isNumber(row.random_largest));
      return {data: {rows: points}, signals: {extent: Math.max(...points.map((each) => Math.abs(each.score)), 1e-9)},
        title: `What each head and MLP carries of the steering ${found[0].vector}`,
        says: ['A score is the sum of the attributed scores of the edges that leave a head or an MLP: its part in the logit of the steered model’s token less that of the unsteered model’s.',
          control ? `Under ${plural(found[0].controls, 'random vector')} of the same length the largest |score| is ${number(control.random_largest)}.` : 'There is no control.']};
    },
  }),
  faithfulness: mechanismFigure('circuit_faithfulness', {
    axis: '↑ the part of the rise in the steered token’s log-probability that the circuit gives', upwards: 'part of the rise',
    give(state) {
      const found = ofSteering('circuit_faithfulness', state);
      if (!found.length) return NO_MECHANISM;
      const point = (row, y, edges) => ({share: row.share, count: row.edges, y, edges, positions: row.positions});
      const points = [...found.map((row) => point(row, row.logprob, 'largest scores')), ...found.filter((row) => isNumber(row.random)).map((row) => point(row, row.random, 'at random'))];
      const needed = found[0].edges_needed;
      return {data: {rows: points, base: [{y: 1}], zero}, title: `How faithful circuits of ${found[0].vector} are, by their size`,
        says: [`Measured at ${plural(found[0].positions, 'position')} of ${plural(found[0].texts, 'text')} that the edges were not chosen on.`,
          isNumber(needed) ? `The smallest of these circuits that reaches 0.85 has ${count(needed)} edges.` : 'None of these circuits reaches 0.85.', 'The dashed line is the steered model.']};
    },
  }),
  sparsity: mechanismFigure('sparsity_curves', {
    axis: '↑ effect of the sparse vector over that of the whole one', upwards: 'effect kept',
    give(state) {
      const found = ofSteering('sparsity_curves', state);
      if (!found.length) return 'no sweep of sparse vectors beside the run whose vector they were made of: vsteer mechanism sparsify writes its grid';
      const whole = found[0].whole_effect;
      const points = found.map((row) => ({method: row.method, dimensions: row.dimensions, share: row.share, y: row.kept, effect: row.effect, items: row.items,
        low: (row.effect - 2 * row.effect_se) / whole, high: (row.effect + 2 * row.effect_se) / whole}));
      return {data: {rows: points.filter((each) => isNumber(each.y)), base: [{y: 1}], zero}, title: `Effect kept by sparse vectors of ${found[0].vector}`,
        says: [`The whole vector’s effect on the logit difference is ${number(whole)} ± ${number(found[0].whole_effect_se)} (standard error), that of ${plural(found[0].controls, 'random vector')} of its length ${number(found[0].random_effect)}.`,
          'Bars are two standard errors of the effect alone. Every sparse vector is as long as the whole one. The dashed line is the whole vector.']};
    },
  }),
});
