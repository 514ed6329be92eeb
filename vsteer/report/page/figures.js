'use strict';
// What each figure shows of the chosen family, layer and measure: its data and its title, or why it has none.
//
// state: family (one value for each of DIMENSIONS, or null), measure, size (|multiplier|), layer

const doneOf = (row) => DATA.operations[row.operation][0];
const signOf = (row) => (row.multiplier === null ? doneOf(row) : row.multiplier > 0 ? '+' : '-');
const named = (family) => `the vector ${family.vector}`;
const zero = [{y: 0}];
const at = (state) => (state.layer === null ? [] : [{layer: state.layer}]);
const sizeText = ({family, size}) => (size === null ? doneOf(family) : `${DATA.level} ±${size}`);
const systemText = (family) => {
  const prompt = DATA.facts.find((run) => run.run === family.run)?.evaluations.find((each) => each.evaluation === family.evaluation && each.system === family.system)?.system_prompt;
  const quoted = (text) => `“${text.length > 80 ? `${text.slice(0, 80)}…` : text}”`;
  return !family.system ? 'no system prompt' : `system prompt ${quoted(family.system)}${prompt && prompt !== family.system ? `, which is ${quoted(prompt)}` : ''}`;
};
// Of what a figure is: the model, what it was asked, and how it was steered.
function aboutOf(name, state) {
  const {family} = state;
  if (FIGURES[name].about) return FIGURES[name].about(state);
  if (family === null) return '';
  const vector = `vector ${family.vector}`, model = `Model ${family.model}`;
  if (FIGURES[name].vector) return `${model}, ${vector}.`;
  const how = `norm ${family.norm}, positions ${family.positions}${family.operation === 'add' ? '' : `, operation ${family.operation}`}`;
  return `${name === 'scaling' ? 'Several models' : model}, evaluation ${family.evaluation}, ${systemText(family)}; ${vector}, ${how}.`;
}
const signsOf = (points) => different(['+', '-', ...Object.values(DATA.operations).map(([done]) => done)]).filter((sign) => points.some((each) => each.sign === sign));

function relative(found) {
  const known = found.map((row) => row.relative_norm).filter(isNumber);
  if (!known.length && found.every((row) => row.multiplier === null)) return `${nounOf(found[0].operation)} injects nothing`;
  if (!known.length) return 'injected norm over stream norm is not measured';
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const text = low === high ? number(low) : `${number(low)} to ${number(high)}`;
  return `injected norm over stream norm is ${text}`;
}
const measured = (found, before = '') => sentence(capital(`${before}${relative(found)}`));
const sentence = (words) => (words && !/[.!?]$/.test(words) ? `${words}.` : words);
const capital = (words) => (words ? words[0].toUpperCase() + words.slice(1) : words);

function itemsText(found) {
  const counts = ascending(found.map((row) => row.items).filter(isNumber));
  if (!counts.length) return '';
  return counts.length === 1 ? plural(counts[0], 'item') : `${count(counts[0])} to ${plural(counts.at(-1), 'item')}`;
}

// A row of a query as a point: its value in the chosen measure, with its interval where there is one.
function point(row, measure) {
  const {se, low, high} = MEASURES[measure];
  const interval = isNumber(row[low]) && isNumber(row[high]);
  return {layer: single(row), place: place(row), multiplier: row.multiplier, sign: signOf(row), y: row[measure],
    low: interval ? row[low] : null, high: interval ? row[high] : null, se: row[se] ?? null,
    relative_norm: row.relative_norm, mass: row.total_mass, items: row.items, why: row.why ?? null};
}

const curves = (state) => ofFamily('multiplier_curves', state.family);
const steeredOnly = (found) => found.filter((row) => row.multiplier !== 0);
const swept = (state) => steeredOnly(curves(state));
const bySize = (state, found) => found.filter((row) => (row.multiplier === null ? state.size === null : Math.abs(row.multiplier) === state.size));
// What is drawn over layers: one size of multiplier, or what has none.
const overLayers = (state) => bySize(state, steeredOnly(configurations(state.family))).filter((row) => single(row) !== null);

function intervalWords(found, measure) {
  if (measure === 'effect_headroom') return 'A ratio of means: it has no interval.';
  const [some, all] = [found.some((point) => point.low !== null), found.every((point) => point.low !== null || point.multiplier === 0)];
  const why = different(found.flatMap((point) => (point.why ?? '').split('; ')).filter(Boolean)).slice(0, 3).join('; ');
  return [some ? 'Shading and bars show 95% intervals over items (BCa), each for its point alone.' : '', all ? '' : some ? 'Some points have none.' : why.startsWith('no interval') ? '' : 'There are no intervals.',
    DATA.nostatistics || !why ? '' : sentence(capital(why))].filter(Boolean).join(' ');
}

function noCurves(state, what) {
  if (state.family === null) return NO_CHOICE;
  if (!curves(state).length) return nounOf(state.family.operation)
    ? `${nounOf(state.family.operation)} has no multiplier, so there is ${what}` : 'no row of this vector has both a good result and a good baseline';
  return null;
}

const FIGURES = {
  layers: {
    tables: ['multiplier_curves', 'without_multiplier', 'control_bands'], pick: true, sized: true,
    give(state) {
      const found = overLayers(state);
      if (!found.length) return noCurves(state, 'no curve by layer') ?? 'only several layers at once were steered: see the heat map';
      const points = lonely(found.map((row) => point(row, state.measure)).sort((a, b) => a.layer - b.layer), 'sign');
      const bands = state.measure === 'effect' ? lonely(controlBand(state), 'kind') : [];
      const kinds = different(bands.map((row) => row.kind));
      const about = kinds.map((kind) => `${countRange(bands.filter((row) => row.kind === kind))} ${kind === 'shuffled labels' ? 'vectors of shuffled labels' : kind}`).join(' and of ');
      return {data: {rows: points, band: bands, zero, at: at(state)}, signals: {bands: kinds, signs: signsOf(points)}, without: kinds.length ? [] : ['fill'],
        title: `Effect of ${named(state.family)} by layer, ${sizeText(state)}`,
        says: [measured(found), sentence(itemsText(found)), intervalWords(points, state.measure),
          bands.length ? `The band behind spans the mean effects of ${about}${state.size === null ? '' : ', at both signs'}. With many layers some leave it by chance: vsteer sql controls says what may be claimed.`
            : state.measure === 'effect' ? (ofFamily('controls', state.family).length ? 'No control vector counts here: vsteer sql controls says why.' : 'No control vectors were run here.') : 'The band of the control vectors is drawn for the logit difference only.']};
    },
  },
  mass: {
    tables: ['multiplier_curves', 'without_multiplier'], axis: '↑ probability of all answers together', upwards: 'probability of all answers', sized: true,
    give(state) {
      const found = overLayers(state);
      if (!found.length) return noCurves(state, 'no curve by layer') ?? 'only several layers at once were steered';
      const unsteered = curves(state).find((row) => row.multiplier === 0)?.total_mass ?? found[0].baseline_mass;
      const points = found.map((row) => point(row, state.measure)).sort((a, b) => a.layer - b.layer);
      const top = unsteered > 0.85 * Math.max(...points.map((each) => each.mass ?? 0));
      return {data: {rows: points, base: isNumber(unsteered) ? [{mass: unsteered, top}] : [], at: at(state)}, signals: {signs: signsOf(points)},
        title: `Probability of all answers together by layer, ${sizeText(state)}`,
        says: ['The logit difference compares two answers and hides a model that would give neither: where their probability falls, it says little.']};
    },
  },
  heat: {
    tables: ['multiplier_curves'], axis: '', tinted: true,
    give(state) {
      const found = swept(state);
      if (!found.length) return noCurves(state, 'no map over multipliers');
      const order = (row) => row.layers[0] + row.layers.length / 1000;
      const points = found.map((row) => ({...point(row, state.measure), order: order(row), chosen: single(row) === state.layer}));
      const extent = Math.max(...points.map((each) => Math.abs(each.y ?? 0)), 1e-9);
      const places = Math.min(6, Math.max(2, 1 - Math.floor(Math.log10(extent))));
      const words = (each) => (isNumber(each.y) ? rounded(each.y, places) : '');
      return {data: {rows: points.map((each) => ({...each, words: words(each)}))}, signals: {extent},
        title: `Effect of ${named(state.family)} by layer and ${DATA.level}`,
        says: [`Each cell shows the ${MEASURES[state.measure].says}. Its tint repeats the number, equally strong for either sign.`, measured(found), sentence(itemsText(found))]};
    },
  },
  dose: {
    tables: ['multiplier_curves', 'doses'], layered: true,
    give(state) {
      const all = curves(state);
      if (!all.length) return noCurves(state, 'no dose curve');
      const value = state.measure;
      const lines = all.map((row) => ({...point(row, value), y: row[value] ?? (row.multiplier === 0 ? 0 : null)}));
      const mine = lines.filter((row) => (state.layer === null ? row.place === lines[0].place : row.layer === state.layer));
      if (!mine.length) return `layer ${state.layer} was not steered alone by this vector`;
      const here = all.filter((row) => place(row) === mine[0].place);
      const dose = doseFit(state, here);
      return {data: {rows: mine.sort((a, b) => a.multiplier - b.multiplier), others: lines, fit: dose.points, zero},
        title: `Effect of ${named(state.family)} by ${DATA.level}, at layer ${mine[0].place}`,
        says: [measured(here.filter((row) => row.multiplier !== 0)), intervalWords(mine, value), dose.says,
          `${different(lines.map((row) => row.place)).length > 1 ? 'Thin lines are the other layers. ' : ''}${here.some((row) => row.multiplier === 0) ? 'Multiplier 0 is the unsteered model.' : 'No multiplier is the unsteered model.'} ${here[0].monotone ? 'The curve never turns back over these multipliers.' : 'The curve turns back somewhere: don’t fit through its end points.'}`]};
    },
  },
  asymmetry_effect: asymmetryFigure('effect', 'asymmetry', 'asymmetry_se', ['effect_minus', 'effect_plus']),
  asymmetry_p: asymmetryFigure('effect_p', 'asymmetry_p', 'asymmetry_p_se', ['effect_p_minus', 'effect_p_plus']),
  asymmetry_headroom: asymmetryFigure('effect_headroom', 'asymmetry_headroom', null, ['headroom_minus', 'headroom_plus']),
  scaling: {tables: ['scaling', 'scaling_fits'], axis: '↑ effect at the peak', upwards: 'effect at the peak', sized: true, give: scalingData},
  coherence: {
    tables: ['coherence_frontier'],
    give: (state) => tradeoffData(state, 'coherence_frontier', 'score', 'score_se', DATA.why.coherence,
      (row) => `the perplexity of texts (${row.texts_of})`, 'Perplexity is what the unsteered model makes of a text: a text that falls apart has a high one. Ringed points are the frontier, with their layer where there is room: no other has more effect at a perplexity as low. Horizontal bars are two standard errors.'),
  },
  capability: {
    tables: ['capability_cost'],
    give: (state) => tradeoffData(state, 'capability_cost', 'cost', 'cost_se', DATA.why.capability,
      (row) => (row.metric === 'accuracy' ? `the accuracy lost on ${row.capability}` : `what ${row.capability} loses in ${row.metric}`), 'Horizontal bars are two standard errors, paired over items. A cost within them is not shown to be one, nor shown to be none.',
      // no accuracies, and on another scale
      (row) => !/perplexity|bits_per_byte/.test(row.metric)),
  },
  components: {
    tables: ['pca'], axis: 'first two components of the contrast’s activations at the chosen layer', vector: true, layered: true,
    give(state) {
      const all = ofVector('pca', state);
      if (!all.length) return DATA.why.vectors;
      const here = all.filter((row) => row.layer === state.layer);
      if (!here.length) return `no activations of layer ${state.layer} were kept`;
      const letter = (row) => (row.letter ? (['A', 'B'].includes(row.letter) ? `, ${row.letter}` : ', other') : '');
      const points = here.map((row) => ({...row, kind: (row.positive ? 'positive' : 'negative') + letter(row)}));
      const kept = here[0].members > here.length ? ` ${count(here.length)} of ${plural(here[0].members, 'member')}.` : '';
      return {data: {rows: points}, signals: {kinds: different(points.map((row) => row.kind)).sort().reverse()},
        title: `Activations at layer ${state.layer} that the vector ${state.family?.vector ?? here[0].vector} was made from`,
        says: [`${plural(here.length, 'point')}.${kept} Where the points separate by letter and not by sign, the vector is the letter’s. The sign of a component means nothing; positive members are put on the right.`]};
    },
  },
  cosine: {
    tables: ['cosine'], axis: 'cosine between the directions of two layers', vector: true,
    give(state) {
      const all = ofVector('cosine', state);
      if (!all.length) return DATA.why.vectors;
      const both = all.flatMap((row) => (row.layer === row.other_layer ? [row] : [row, {...row, layer: row.other_layer, other_layer: row.layer}]));
      return {data: {rows: both.map((row) => ({...row, chosen: row.layer === state.layer}))},
        title: `Cosines between the directions of ${all[0].vector} at all layers`, says: ['The directions are as extracted; no norm changes a cosine.']};
    },
  },
  cosine_row: {
    tables: ['cosine'], spec: 'line', axis: '↑ cosine', upwards: 'cosine', pick: true, vector: true, layered: true,
    give(state) {
      const all = ofVector('cosine', state);
      if (!all.length) return DATA.why.vectors;
      const mine = all.filter((row) => row.layer === state.layer || row.other_layer === state.layer)
        .map((row) => ({layer: row.layer === state.layer ? row.other_layer : row.layer, y: row.cosine}));
      if (!mine.length) return `the vector has no direction at layer ${state.layer}`;
      return {data: {rows: mine.sort((a, b) => a.layer - b.layer), base: zero, at: at(state)},
        title: `Cosine of the direction at layer ${state.layer} with every layer’s, ${all[0].vector}`, says: []};
    },
  },
  ...Object.fromEntries([
    ['norm_over_stream', 'norm over stream norm', 'The length of the direction over that of the stream, as extracted (multiplier 1 of norm raw).'],
    ['class_separation', 'class separation', 'How many standard deviations lie between the classes, on members that the direction was not made from.'],
    ['split_half', 'split-half cosine', 'The cosine between the directions of two halves of the pairs: how well the data determine it.'],
    ['pair_agreement', 'agreement of pairs', 'The mean cosine between two pairs’ differences: 1 if all are alike, 0 if they have nothing in common.'],
    ['letter_share', 'letter’s share', 'The share of the squared direction that lies where the answers’ letters differ.'],
    ['rounding', 'rounding', 'An estimate of the error that the model’s rounding makes, over the difference of the classes’ means: at 0.1 the cosine with float32’s direction is about 0.995.'],
  ].map(([column, title, says]) => [`worth_${column}`, {
    tables: ['layers'], spec: 'line', pick: true, axis: '', upwards: title, vector: true,
    give(state) {
      const found = ofVector('layers', state).filter((row) => isNumber(row[column]));
      if (!found.length) return ofVector('layers', state).length ? `${title}: not defined for the data that this vector was made from` : DATA.why.vectors;
      return {data: {rows: found.map((row) => ({layer: row.layer, y: row[column]})), base: [], at: at(state)}, title: `${capital(title)} by layer, ${found[0].vector}`, says: [says]};
    },
  }])),
  spread: {
    tables: ['steerability'], pick: true, axis: '↑ slope of an item’s logit difference over the multipliers', upwards: 'slope',
    give(state) {
      const found = ofFamily('steerability', state.family).filter((row) => single(row) !== null).sort((a, b) => single(a) - single(b));
      if (!found.length) return noCurves(state, 'no slope') ?? 'no single layer was steered';
      const points = found.map((row) => ({layer: single(row), y: row.slope, low: row.slope_low, high: row.slope_high, wrong: row.share_wrong_way, items: row.items}));
      return {data: {rows: lonely(points, 'kind'), zero, at: at(state)},
        title: `Slopes of single items by layer, ${named(state.family)}`,
        says: ['The line is the mean over items. The shading spans the tenth to the ninetieth percentile of the items, which is their spread and no interval of the mean.', measured(found.map((row) => ({relative_norm: row.relative_norm_1})), 'at multiplier 1 ')]};
    },
  },
  wrong: {
    tables: ['steerability'], spec: 'line', pick: true, axis: '↑ share of items whose slope is below 0', upwards: 'share of items',
    give(state) {
      const found = ofFamily('steerability', state.family).filter((row) => single(row) !== null).sort((a, b) => single(a) - single(b));
      if (!found.length) return noCurves(state, 'no slope') ?? 'no single layer was steered';
      return {data: {rows: found.map((row) => ({layer: single(row), y: row.share_wrong_way})), base: [{y: 0.5}], at: at(state)},
        title: `Share of items that move the wrong way, ${named(state.family)}`, says: ['The dashed line is at one half, which is what no effect looks like.']};
    },
  },
  slopes: {
    tables: ['item_slopes'], axis: '↑ slope of the logit difference over the multipliers; bars: ± root mean square residual', upwards: 'slope', layered: true,
    give(state) {
      const family = ofFamily('item_slopes', state.family);
      if (!family.length) return noCurves(state, 'no slope') ?? DATA.tables.item_slopes.note;
      const found = family.filter((row) => (state.layer === null ? true : single(row) === state.layer)).sort((a, b) => a.slope - b.slope);
      if (!found.length) return `no slopes of layer ${state.layer} here${DATA.tables.item_slopes.note ? `: ${DATA.tables.item_slopes.note}` : ''}`;
      const wrong = found.filter((row) => row.wrong_way).length;
      return {data: {rows: found.map((row, n) => ({...row, rank: n + 1, low: row.slope - row.residual, high: row.slope + row.residual, way: row.wrong_way ? 'the wrong way' : 'as the multiplier'})), zero},
        title: `Slope of every item at layer ${place(found[0])}, ${named(state.family)}`,
        says: [`${wrong} of ${plural(found.length, 'item')} move the wrong way, at ${plural(found[0].multipliers, 'multiplier')} with the unsteered 0. One item at few multipliers is mostly noise: believe the share, not the item.`]};
    },
  },
};

// An area has no width where a point has no neighbour in its series: it is drawn as a bar there.
function lonely(points, series) {
  const drawn = points.filter((each) => isNumber(each.low) && isNumber(each.high));
  return points.map((each) => ({...each, lonely: drawn.includes(each) && drawn.filter((other) => other[series] === each[series]).length === 1}));
}

function countRange(bands) {
  const counts = ascending(bands.map((row) => row.controls));
  return counts.length === 1 ? count(counts[0]) : `${count(counts[0])} to ${count(counts.at(-1))}`;
}

const BANDS = {random: 'random vectors', shuffled: 'shuffled labels', unrelated: 'unrelated vectors'};

function controlBand(state) {
  const found = bySize(state, ofFamily('control_bands', state.family)).filter((row) => single(row) !== null && row.control);
  const bands = new Map();
  for (const row of found) {
    const key = `${row.control} ${single(row)}`;
    const band = bands.get(key) ?? {kind: BANDS[row.control], layer: single(row), low: Infinity, high: -Infinity, controls: Infinity};
    bands.set(key, {...band, low: Math.min(band.low, row.control_low), high: Math.max(band.high, row.control_high), controls: Math.min(band.controls, row.controls)});
  }
  return [...bands.values()].sort((a, b) => a.layer - b.layer);
}

function asymmetryFigure(measure, column, se, [low, high]) {
  return {
    tables: ['sign_asymmetry'], spec: 'asymmetry', pick: true, sized: true, upwards: `asymmetry in ${MEASURES[measure].label}`,
    axis: `↑ ${MEASURES[measure].short}: −(effect at −m) − (effect at +m)`,
    give(state) {
      const found = bySize(state, ofFamily('sign_asymmetry', state.family)).filter((row) => single(row) !== null && isNumber(row[column]));
      if (!found.length) return noCurves(state, 'no sign') ?? 'no layer was steered at both m and −m';
      const interval = found.some((row) => isNumber(row[`${column}_low`]));
      const points = found.map((row) => ({layer: single(row), y: row[column], minus: row[low], plus: row[high], relative_norm: row.relative_norm, items: row.items,
        low: interval ? row[`${column}_low`] : se ? row[column] - row[se] : row[column], high: interval ? row[`${column}_high`] : se ? row[column] + row[se] : row[column],
        stronger: row[column] > 0 ? 'negative' : 'positive'})).sort((a, b) => a.layer - b.layer);
      return {data: {rows: points, zero, at: at(state)},
        title: `Asymmetry of the signs in ${MEASURES[measure].label} by layer, ${sizeText(state)}`,
        says: ['Above 0 the negative multiplier acts more strongly in its own direction.',
          interval ? 'Bars show 95% intervals over items.' : se ? 'Bars show one standard error to each side, which is no interval.' : 'A ratio of means has no standard error.', measured(found)]};
    },
  };
}

// The line through the logit difference, or the logistic curve through p(matching), less the unsteered value.
function doseFit(state, here) {
  const measure = {effect: 'logit_diff', effect_p: 'p_match'}[state.measure];
  const found = ofFamily('doses', state.family).find((row) => row.measure === measure && place(row) === place(here[0]));
  if (!found || !isNumber(found.slope)) return {points: [], says: found?.why ? `No fit: ${found.why}.` : ''};
  const unsteered = found.means[found.multipliers.indexOf(0)], [low, high] = [found.multipliers[0], found.multipliers.at(-1)];
  if (!isNumber(unsteered)) return {points: [], says: ''};
  const value = (m) => (found.fit === 'line' ? found.intercept + found.slope * m : 1 / (1 + Math.exp(-(found.intercept + found.slope * m)))) - unsteered;
  const points = Array.from({length: 41}, (_, n) => low + ((high - low) * n) / 40).map((m) => ({multiplier: m, y: value(m)}));
  const interval = isNumber(found.slope_low) ? ` (95% interval ${number(found.slope_low)} to ${number(found.slope_high)})` : '';
  return {points, says: `The dashed ${found.fit === 'line' ? 'line is fitted' : 'curve is a fitted logistic'}: ${number(found.slope)}${interval} logits for each 1 of multiplier, R² ${number(found.fit_r2)}, ${plural(found.residual_df, 'residual degree')} of freedom.`};
}

const FORMULAS = {
  exponential: (fit, x) => fit.offset + fit.scale * Math.exp(-fit.rate * x),
  power: (fit, x) => fit.scale * x ** -fit.rate,
  log_linear: (fit, x) => fit.offset + fit.scale * Math.log(x),
};

function scalingData(state) {
  if (state.family === null) return NO_CHOICE;
  const same = DIMENSIONS.filter((name) => !['run', 'model'].includes(name));
  const alike = (table) => bySize(state, rows(table).filter((row) => same.every((name) => row[name] === state.family[name] || row[name] === undefined)));
  const found = alike('scaling');
  if (different(found.map((row) => row.model)).length < 2) return 'this report has one model, and scaling needs several: vsteer report RUN1 RUN2 ...';
  const sized = found.filter((row) => isNumber(row.billions));
  if (!sized.length) return 'no model’s name says how many parameters it has (7b, 135m)';
  const held = state.measure === 'effect' && sized.some((row) => isNumber(row.heldout_effect));
  const points = sized.map((row) => ({...point({...row, layers: [row.peak_layer]}, state.measure), model: row.model, billions: row.billions, peak_layer: row.peak_layer, peak_depth: row.peak_depth,
    ...(held ? {y: row.heldout_effect, low: row.heldout_low, high: row.heldout_high} : {})}));
  const fits = held ? alike('scaling_fits').filter((row) => row.measure === 'logit_diff' && isNumber(row.scale)) : [];
  const sizes = sized.map((row) => row.billions), [low, high] = [Math.min(...sizes), Math.max(...sizes)];
  const curves = fits.flatMap((fit) => Array.from({length: 41}, (_, n) => low * (high / low) ** (n / 40)).map((x) => ({billions: x, y: FORMULAS[fit.family](fit, x), family: fit.family, series: `${fit.family} ${fit.multiplier} ${fit.run}`})));
  const reasons = different(sized.flatMap((row) => (row.fit_why ?? '').split(/[;.] /)).map((each) => each.replace(/[.]$/, '').replace('log_linear', 'log-linear')).filter((each) => each && !each.startsWith('no family is preferred')));
  const preferred = different(fits.filter((fit) => fit.preferred === true).map((fit) => `${fit.family.replace('_', '-')} at ${multiplierText(fit.multiplier)}: ${fit.curve} (${fit.residual_df} residual degrees of freedom)`));
  return {data: {rows: points, fit: curves, zero}, signals: {families: different(fits.map((fit) => fit.family)), signs: signsOf(points)}, without: curves.length ? [] : ['strokeDash'],
    title: `Largest effect of ${named(state.family)} by model size, ${sizeText(state)}`,
    says: [measured(sized), held ? `Effects on items that did not choose the peak’s layer${points.some((each) => isNumber(each.low)) ? ', with 95% intervals' : ''}.` : 'Each peak is chosen on the items that it is reported on, so it is too large.',
      'Compare models at equal injected norm over stream norm.',
      preferred.length ? `The models prefer ${preferred.join('; ')}. That is the best of three over these sizes, and no law.` : held ? `No family is preferred${reasons.length ? `: ${reasons.join('; ')}` : ''}.` : '']};
}

function tradeoffData(state, table, cost, se, why, of, says, counts = () => true) {
  if (state.family === null) return rows(table).length ? NO_CHOICE : why;
  const same = ['run', 'model', 'vector', 'norm', 'positions', 'operation'];
  const found = rows(table).filter((row) => counts(row) && same.every((name) => row[name] === state.family[name]) && isNumber(row[state.measure]) && isNumber(row[cost])
    && row.evaluation === state.family.evaluation && (row.asked_system ?? row.system) === state.family.system);
  if (!found.length) return why;
  const points = found.map((row) => ({...point(row, state.measure), cost: row[cost], cost_low: row[cost] - 2 * (row[se] ?? 0), cost_high: row[cost] + 2 * (row[se] ?? 0), of: of(row), marked: row.frontier === true}));
  return {data: {rows: labelled(points), zero}, signals: {signs: signsOf(points)},
    title: `Effect of ${named(state.family)} against ${different(found.map(of)).join('; ')}`,
    says: [says, measured(found)]};
}

// The frontier's points with a label each, but for those whose label would lie on another's.
function labelled(points) {
  const span = (name) => Math.max(...points.map((each) => each[name])) - Math.min(...points.map((each) => each[name])) || 1;
  const [wide, high] = [span('cost'), span('y')], taken = [];
  return points.map((each) => {
    const room = each.marked && !taken.some((other) => Math.abs(other.cost - each.cost) < 0.05 * wide && Math.abs(other.y - each.y) < 0.07 * high);
    if (room) taken.push(each);
    return {...each, labelled: room};
  });
}

// The tables beside a vector's file know its name, run and model; a vector from elsewhere has no such tables.
function ofVector(table, state) {
  const all = rows(table);
  if (state.family === null) return all.length ? all.filter((row) => row.run === all[0].run && row.vector === all[0].vector && row.model === all[0].model) : [];
  const mine = all.filter((row) => row.run === state.family.run && row.vector === state.family.vector);
  const here = mine.filter((row) => row.model === state.family.model);
  return here.length ? here : mine.filter((row) => !row.model);
}
