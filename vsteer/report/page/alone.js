'use strict';
// A figure that stands alone, for a paper: light, on white, as wide as a column, with what it shows in words.

// At this width a figure that is scaled to a column of 3.3 inches has words of 6 to 8 points.
const COLUMN = 440;
const CELL = 34;

function inColours(spec, palette) {
  const all = {...palette, none: 'transparent'};
  return JSON.parse(JSON.stringify(spec).replace(/"@(\w+)"/g, (_, name) => JSON.stringify(all[name])));
}

function configOf(palette, sizes = {words: 11, title: 13, subtitle: 11}) {
  const font = 'system-ui, "Segoe UI", Roboto, Arial, "Liberation Sans", sans-serif';
  const words = {labelColor: palette.ink, titleColor: palette.quiet, labelFont: font, titleFont: font, labelFontSize: sizes.words, titleFontSize: sizes.words, titleFontWeight: 500};
  return {
    axis: {...words, domainColor: palette.quiet, tickColor: palette.quiet, gridColor: palette.faint, gridOpacity: 0.55},
    legend: {...words, orient: 'top', direction: 'horizontal', titleOrient: 'left', titleLimit: 300, labelLimit: 300, layout: {top: {anchor: 'start', direction: 'vertical', margin: 2}}, offset: 4},
    title: {anchor: 'start', frame: 'bounds', color: palette.ink, subtitleColor: palette.quiet, font, subtitleFont: font, fontSize: sizes.title, subtitleFontSize: sizes.subtitle, subtitlePadding: 5, offset: 8},
    style: {cell: {stroke: 'transparent'}, text: {font}},
  };
}

// A legend without entries has no size that could be laid out.
function withLegends(spec, given) {
  const empty = (legend) => (given.without ?? []).some((scale) => [legend.fill, legend.strokeDash].includes(scale));
  return {...spec, legends: (spec.legends ?? []).filter((legend) => !empty(legend))};
}

// Lines of at most so many characters; a word that is longer is cut into pieces.
function wrapped(text, most) {
  const pieces = text.split(' ').flatMap((word) => word.match(new RegExp(`.{1,${most}}`, 'gu')) ?? []);
  return pieces.reduce((lines, word) => {
    if (lines.at(-1) && [...`${lines.at(-1)} ${word}`].length > most) lines.push(word);
    else lines[lines.length - 1] = `${lines.at(-1)} ${word}`.trim();
    return lines;
  }, ['']);
}

// Whether a figure shows the chosen measure: upwards, or as a tint.
const inMeasures = (name) => FIGURES[name].axis === undefined || FIGURES[name].tinted === true;
const axisOf = (name, state) => FIGURES[name].axis ?? `↑ ${MEASURES[state.measure].says}`;
// What a figure shows in words, below its title: of what it is, its axis, and how to read it.
const wordsOf = (name, state, given) => [aboutOf(name, state), sentence(axisOf(name, state).replace('↑ ', 'Upwards: ')), ...given.says].map(capital).filter(Boolean).join(' ');
// The page marks the layer that its slider is at; a figure that stands alone has no slider.
const unmarked = (name, rows) => (name === 'at' ? [] : (rows ?? []).map((row) => ('chosen' in row ? {...row, chosen: false} : row)));

// Its Vega specification, data and all. `palette` has a colour for each name in the specification.
function standAlone(name, state, given, spec, palette) {
  const cells = name === 'heat' ? different(given.data.rows.map((row) => row.multiplier)).length : 0;
  const width = Math.max(COLUMN, 70 + CELL * cells);
  const title = {text: wrapped(given.title, Math.floor(width / 7)), subtitle: wrapped(wordsOf(name, state, given), Math.floor(width / 5.7))};
  const made = inColours({...withLegends(spec, given), background: '#ffffff', title}, palette);
  const upwards = FIGURES[name].upwards ?? (FIGURES[name].axis === undefined ? MEASURES[state.measure].upwards : '');
  return {...made, width, padding: 6, height: typeof made.height === 'number' ? Math.min(made.height, 240) : made.height, config: {...configOf(palette, {words: 12, title: 13, subtitle: 11}), ...made.config},
    data: made.data.map((each) => (each.source ? each : {...each, values: unmarked(each.name, given.data[each.name])})),
    signals: (made.signals ?? []).map((each) => (each.name in (given.signals ?? {}) ? {...each, value: given.signals[each.name]} : each)),
    axes: made.axes.map((each) => (each.scale === 'y' && !each.grid && upwards ? {...each, title: upwards} : each))};
}

// A file's name for it, without an ending.
function fileOf(name, state) {
  const {family, size, layer} = state, parts = [name];
  if (family !== null) {
    const varied = different(FAMILIES.map((each) => each.system)).length > 1;
    const names = FIGURES[name].vector ? ['model', 'vector'] : DIMENSIONS.slice(1).filter((each) => each !== 'system' || varied);
    parts.push(...(DATA.facts.length > 1 ? [family.run] : []), ...names.map((each) => family[each]).filter((each) => each !== 'add'));
    if (FIGURES[name].sized && size !== null) parts.push(`${DATA.level}${size}`);
  }
  if (FIGURES[name].layered && layer !== null) parts.push(`layer${layer}`);
  if (state.measure !== 'effect' && inMeasures(name)) parts.push(state.measure);
  // Letters of any script, Latin ones without their accents, in fewer bytes than a file's name may have.
  const plain = (text) => text.normalize('NFKD').replace(/(\p{Script=Latin})\p{M}+/gu, '$1').normalize('NFC').replace(/[^\p{L}\p{M}\p{N}._+]+/gu, '_');
  const kept = (text, most) => [...text].slice(0, most).join(''), bytes = (text) => encodeURIComponent(text).replace(/%../g, 'x').length;
  let file = parts.map((part) => kept(plain(String(part ?? '')), 40)).filter(Boolean).join('-');
  while (bytes(file) > 180) file = kept(file, [...file].length - 1);
  return file;
}
