'use strict';
// The parts of the page that are words and tables: what was run, what failed, the peaks, further questions.

function meter(run) {
  const share = (number) => `width:${run.planned ? (100 * number) / run.planned : 0}%`;
  return element('div', {class: 'meter', role: 'img', 'aria-label': `${count(run.good)} of ${count(run.planned)} rows are good, ${count(run.errors)} failed, ${count(run.missing)} missing`},
    element('span', {style: share(run.good)}), element('span', {class: 'failed', style: share(run.errors)}));
}

function stateOf(run) {
  const whole = run.good === run.planned && run.planned > 0;
  const more = [run.errors ? `${count(run.errors)} failed` : '', run.missing ? `${count(run.missing)} missing` : '', run.live ? 'still running when this was made' : ''].filter(Boolean);
  return element('p', {}, element('span', {class: whole ? 'good' : 'bad'}, whole ? '✓ complete' : '✗ incomplete'),
    ` ${count(run.good)} of ${count(run.planned)} rows are good${more.length ? `, ${more.join(', ')}` : ', none failed'}`);
}

function banners() {
  const found = [];
  for (const run of DATA.facts) {
    if (run.good !== run.planned || run.live) found.push([`${run.run} is not complete.`, ` ${count(run.missing)} of ${count(run.planned)} rows are missing and ${count(run.errors)} failed${run.live ? '; it was still running when this page was made' : ''}. Every figure shows what is there, and may change.`]);
  }
  if (DATA.nostatistics && rows('multiplier_curves').length) found.push(['There are no intervals, held-out peaks or fits here:', ` ${DATA.nostatistics}.`]);
  for (const warning of DATA.warnings) found.push(['Take care.', ` ${warning}`]);
  return found.map(([bold, words]) => element('div', {class: 'banner', role: 'note'}, element('p', {}, element('strong', {}, bold), words)));
}

function duration(began, ended) {
  const seconds = (new Date(ended) - new Date(began)) / 1000;
  if (!isNumber(seconds)) return '';
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  return hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min ${Math.round(seconds % 60)} s` : `${seconds.toFixed(1)} s`;
}

function factsOf(run) {
  const facts = [
    ['model', run.models.map((one) => `${one.model}, ${one.dtype}${one.quantization ? `, ${one.quantization}` : ''}, ${one.model_commit.slice(0, 12)}`)],
    ['vectors', run.vectors.map((one) => `${one.vector}${run.models.length > 1 ? ` in ${one.model}` : ''}: norm ${one.norm}, ${one.operation} at ${one.positions}, layers ${one.layers}, ${DATA.level}s ${(one.multipliers ?? []).map((value) => multiplierText(value, one.operation)).join(', ') || 'none'}; `
      + ([one.random ? plural(one.random, 'random vector') : '', one.shuffled ? plural(one.shuffled, 'vector') + ' of shuffled labels' : '', one.unrelated ? plural(one.unrelated, 'unrelated vector') : ''].filter(Boolean).join(', ') || 'no control vectors'))],
    ['evaluations', run.evaluations.map((one) => `${one.evaluation}: ${plural(one.items, one.kind === 'choice' ? 'question with given answers' : 'open question').replace(/question(.*)s$/, 'questions$1s').replace('questions with given answerss', 'questions with given answers').replace('open questionss', 'open questions')}${one.orders > 1 ? ', both letter orders' : ''}, ${plural(one.configs, 'configuration')}${one.system_prompt ? `, system prompt “${one.system_prompt}”` : ''}`)],
    ['computed by', [`${run.engines.join(', ')}${run.hardware ? ` on ${run.hardware}` : ''}${run.vsteer ? `, vsteer ${run.vsteer}` : ''}`]],
    ['when', [run.began ? `${run.began.replace('T', ' ')} UTC, ${duration(run.began, run.ended)} from the first row to the last${run.sessions > 1 ? `, ${run.sessions} starts` : ''}` : 'no row yet']],
    ['folder', [run.folder]],
  ];
  return element('dl', {class: 'facts'}, facts.flatMap(([name, lines]) => [element('dt', {}, name), element('dd', {}, lines.map((line) => element('div', {}, line)))]));
}

function runSection() {
  return [...DATA.facts.map((run) => element('div', {class: 'run'}, DATA.facts.length > 1 ? element('h3', {}, run.run) : null, stateOf(run), meter(run), factsOf(run))), failures()];
}

function failures() {
  const found = rows('failures');
  if (!found.length) return element('p', {}, 'No row failed or is missing; every steered row was steered and has its baseline.');
  const header = ['run', 'evaluation', 'problem', 'what', 'rows', 'share', 'configs', 'example'];
  return element('div', {id: 'failures'}, element('h3', {}, 'Rows that are not what was planned'), tableElement(header, found.map((row) => header.map((name) => row[name]))),
    element('details', {class: 'more'}, element('summary', {}, 'SQL, CSV'), sources(['failures'])));
}

// The verdicts of the query `controls` on a vector, each with the figures that it rests on.
function verdicts(family) {
  const found = ofFamily('controls', family);
  if (!found.length) return ['No control vectors were run, so it is not known whether a random vector would do the same.'];
  return [...found].sort((a, b) => b.headline - a.headline).map((row) => {
    const words = row.headline && found.length > 1 ? `by the strictest control: ${row.verdict}` : row.verdict;
    const verdict = `${words[0].toUpperCase()}${words.slice(1)}.`;
    const own = `The vector’s largest |effect| is ${number(row.largest, 2)} (layer ${place(row)}, ${row.multiplier === null ? '' : `${DATA.level} `}${multiplierText(row.multiplier, row.operation)}, ${relative([row])})`;
    const theirs = row.controls ? `, the largest of ${plural(row.controls, `${row.control} vector`)} is ${number(row.control_largest, 2)} (p = ${number(row.p_value)})` : '';
    const left = row.controls_left_out ? ` ${plural(row.controls_left_out, `${row.control} vector`)} left out: rows are missing, or another vector is repeated.` : '';
    return `${verdict} ${own}${theirs}.${left}`;
  });
}

function peaksSection(state, choose) {
  const found = rows('layer_peaks');
  if (!found.length) return [element('p', {class: 'why'}, DATA.why.choice)];
  const varying = DIMENSIONS.filter((name) => different(found.map((row) => row[name])).length > 1);
  const heldout = found.some((row) => isNumber(row.heldout_effect));
  const banded = found.some((row) => ['outside_random', 'outside_shuffled', 'outside_unrelated'].some((name) => typeof row[name] === 'boolean'));
  const outside = (row) => [['random', row.outside_random], ['shuffled', row.outside_shuffled], ['unrelated', row.outside_unrelated]].filter(([, each]) => typeof each === 'boolean').map(([kind, each]) => `${kind}: ${each ? 'yes' : 'no'}`).join(', ') || '–';
  const header = ['peak layer (depth)', DATA.level, ...varying.map((name) => WORDS[name]), 'effect on the logit difference', ...(heldout ? ['held-out effect (95%)'] : []), 'Δ p', 'indistinguishable layers', ...(banded ? ['outside the controls, this row alone'] : []), 'injected norm / stream norm', 'mass (unsteered)', 'items'];
  const lines = found.map((row) => [element('button', {type: 'button', onclick: () => choose(row), 'aria-label': `show ${row.vector} at layer ${row.peak_layer}`}, `${row.peak_layer} (${number(row.peak_depth, 2)})`),
    multiplierText(row.multiplier, row.operation), ...varying.map((name) => String(row[name])),
    `${signed(row.effect)} ± ${number(row.effect_se, 2)} se`,
    ...(heldout ? [isNumber(row.heldout_effect) ? `${signed(row.heldout_effect)}${isNumber(row.heldout_low) ? ` (${signed(row.heldout_low)} to ${signed(row.heldout_high)})` : ''}` : '–'] : []),
    signed(row.effect_p), (row.near_layers ?? []).join(', ') || '–', ...(banded ? [outside(row)] : []), number(row.relative_norm), `${number(row.total_mass)} (${number(row.baseline_mass)})`, count(row.items)]);
  const norms = different(found.map((row) => row.norm)).join(', ');
  return [
    element('h3', {}, `Peaks, norm ${norms}; ${relative(found)}`),
    tableElement(header, lines, {chosen: (line) => state.family !== null && keyOf(found[line]) === keyOf(state.family)}),
    element('p', {class: 'quiet'}, `The layer is chosen on the items that “effect” is reported on, so that effect is too large${heldout ? ' and its standard error says nothing of the choice: report the held-out effect, which is measured on items that did not choose its layer' : ''}. A layer in the table is a button: it shows that layer below.`),
    ...different(DATA.nostatistics ? [] : found.map((row) => row.why).filter(Boolean)).slice(0, 6).map((why) => element('p', {class: 'why'}, why)),
    element('div', {id: 'verdicts'}, element('h3', {}, state.family ? `Against controls: ${named(state.family)}` : ''), ...(state.family ? verdicts(state.family) : []).map((words) => element('p', {}, words))),
    element('details', {class: 'more'}, element('summary', {}, 'SQL, CSV'), sources(['layer_peaks', 'controls'])),
  ];
}

function moreSection() {
  const parts = DATA.more.map((name) => {
    const found = rows(name), header = Object.keys(DATA.tables[name].columns);
    const question = DATA.tables[name].about.split('\n')[0];
    if (!found.length) return element('p', {class: 'why'}, `${question} No row in this run answers it (vsteer sql ${name} --about says what it needs).`);
    return element('details', {class: 'more', 'data-more': name}, element('summary', {}, `${question} (${plural(found.length, 'row')})`),
      tableElement(header, found.map((row) => header.map((column) => row[column])), {most: 100}), sources([name]));
  });
  return [...parts, element('p', {class: 'quiet'}, 'Every question is a file of SQL: vsteer sql --list names them, and vsteer sql NAME RUN --print prints all of it for plain DuckDB.')];
}
