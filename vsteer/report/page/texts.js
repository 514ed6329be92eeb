'use strict';
// The browser of generated texts: steered beside unsteered, filtered by configuration, prompt, words and score.

const PAGE = 10;
// Draws the texts again when they follow the layer of the figures.
let followLayer = () => {};

function textsSection() {
  const all = rows('texts').filter((row) => row.vector !== '');
  if (!rows('texts').length) return [element('p', {class: 'why'}, DATA.why.texts)];
  const note = element('p', {class: 'quiet'}, DATA.tables.texts.note + '.');
  const more = element('details', {class: 'more'}, element('summary', {}, 'SQL, CSV'), sources(['texts', 'questions', 'scores']));
  const baselines = new Map(rows('texts').filter((row) => row.vector === '').map((row) => [`${row.run} ${row.config_id} ${row.prompt_id}`, row]));
  const questions = new Map(rows('questions').map((row) => [`${row.run} ${row.prompt_id}`, row]));
  const scores = new Map();
  for (const score of rows('scores')) {
    const key = `${score.run} ${score.row_id}`;
    if (!scores.has(key)) scores.set(key, []);
    scores.get(key).push(score);
  }
  if (!all.length) return [element('p', {class: 'why'}, 'so far there are only unsteered texts'), note, more];
  const scoreNames = different(rows('scores').map((score) => score.name));

  let shown = PAGE;
  const list = element('div', {id: 'generations', 'aria-live': 'polite'});
  const matched = element('p', {class: 'quiet', id: 'matches', role: 'status'});
  const update = () => {
    shown = PAGE;
    draw();
  };
  const select = (label, values, words = (value) => String(value)) => {
    const made = element('select', {onchange: update, 'data-filter': label}, element('option', {value: ''}, 'all'), values.map((value, n) => element('option', {value: String(n + 1)}, words(value))));
    made.picked = () => (made.value === '' ? undefined : values[Number(made.value) - 1]);
    return [made, element('label', {hidden: values.length < 2}, label, made)];
  };
  const columns = ['run', 'model', 'evaluation', 'system', 'vector', 'norm', 'positions'].map((name) => [name, ...select(WORDS[name], different(all.map((row) => row[name])))]);
  const layers = different(all.map(place));
  const [layer, layerLabel] = select('layer', layers);
  if (layers.length > 1 && rows('multiplier_curves').length) {
    layer.prepend(element('option', {value: 'figures', selected: true}, 'as in the figures'));
    followLayer = () => layer.value === 'figures' && update();
  }
  // The layer that is shown; all of them where the figures' layer has no text.
  const wantedLayer = () => (layer.value !== 'figures' ? layer.picked() : layers.includes(String(state.layer)) ? String(state.layer) : undefined);
  const [multiplier, multiplierLabel] = select('multiplier', ascending(all.map((row) => row.multiplier)), (value) => multiplierText(value));
  const prompts = different(all.map((row) => row.prompt_id));
  const questionOf = (row) => questions.get(`${row.run} ${row.prompt_id}`)?.question ?? '';
  const firstWith = new Map(all.map((row) => [row.prompt_id, row]));
  const [prompt, promptLabel] = select('prompt', prompts, (id) => questionOf(firstWith.get(id)).slice(0, 90));
  const [score, scoreLabel] = select('score', scoreNames);
  const words = element('input', {type: 'search', oninput: update, 'data-filter': 'words', placeholder: 'in text or prompt'});
  const low = element('input', {type: 'number', step: 'any', oninput: update, 'data-filter': 'low'});
  const high = element('input', {type: 'number', step: 'any', oninput: update, 'data-filter': 'high'});
  const changed = element('input', {type: 'checkbox', oninput: update, 'data-filter': 'changed'});
  const order = element('select', {onchange: update, 'data-filter': 'order'}, element('option', {value: ''}, 'as run'), scoreNames.length ? [element('option', {value: 'up'}, 'score, least first'), element('option', {value: 'down'}, 'score, most first')] : []);

  const valueOf = (row) => (scores.get(`${row.run} ${row.row_id}`) ?? []).find((each) => each.name === (score.picked() ?? scoreNames[0]))?.value ?? null;
  const baselineOf = (row) => baselines.get(`${row.run} ${row.baseline_id} ${row.prompt_id}`);
  const bound = (input, otherwise) => (input.value === '' || Number.isNaN(Number(input.value)) ? otherwise : Number(input.value));

  function matches() {
    const wanted = words.value.toLowerCase(), limited = low.value !== '' || high.value !== '' || score.picked() !== undefined;
    const found = all.filter((row) => columns.every(([name, each]) => each.picked() === undefined || row[name] === each.picked())
      && (wantedLayer() === undefined || place(row) === wantedLayer()) && (multiplier.picked() === undefined || row.multiplier === multiplier.picked())
      && (prompt.picked() === undefined || row.prompt_id === prompt.picked())
      && (!wanted || row.text.toLowerCase().includes(wanted) || questionOf(row).toLowerCase().includes(wanted))
      && (!changed.checked || row.text !== baselineOf(row)?.text)
      && (!limited || (isNumber(valueOf(row)) && valueOf(row) >= bound(low, -Infinity) && valueOf(row) <= bound(high, Infinity))));
    if (!order.value) return found;
    const sign = order.value === 'up' ? 1 : -1;
    return found.sort((a, b) => sign * ((valueOf(a) ?? sign * Infinity) - (valueOf(b) ?? sign * Infinity)));
  }

  function chips(row) {
    const found = scores.get(`${row.run} ${row.row_id}`) ?? [];
    return element('div', {class: 'chips'}, found.map((each) => element('span', {title: each.note}, `${each.name} ${number(each.value)}`)));
  }

  // The beginning that both texts share is grey, so that the eye goes to where they differ.
  function body(row, other) {
    if (!row) return element('p', {class: 'text'}, element('span', {class: 'empty'}, 'no unsteered text of this prompt is in the sample'));
    let same = 0;
    while (other && same < row.text.length && row.text[same] === other.text[same]) same += 1;
    if (other && row.text !== other.text) same = row.text.lastIndexOf(' ', same) + 1;
    const rest = [element('span', {class: 'same'}, row.text.slice(0, same)), row.text.slice(same)];
    const end = row.cut ? ` […${plural(row.cut, 'character')} more]` : row.finish_reason === 'length' ? ' …' : '';
    return element('p', {class: 'text'}, row.text === '' ? element('span', {class: 'empty'}, 'empty') : rest, element('span', {class: 'quiet'}, end));
  }

  function card(row) {
    const other = baselineOf(row), varied = columns.filter(([, each]) => each.options.length > 2).map(([name]) => row[name]);
    return element('article', {}, element('h3', {}, [`layer ${place(row)}`, `multiplier ${multiplierText(row.multiplier, row.operation)}`, ...varied].join(' · ')),
      element('p', {class: 'quiet'}, questionOf(row)),
      element('div', {class: 'pair'},
        element('div', {}, element('strong', {}, 'unsteered'), other ? chips(other) : null, body(other, row)),
        element('div', {}, element('strong', {}, `steered, ${plural(row.steered_tokens, 'token')}`), chips(row), body(row, other))));
  }

  function draw() {
    const found = matches();
    matched.textContent = found.length ? `${plural(found.length, 'text')} of ${count(all.length)} steered ones here` : 'No text matches: loosen a filter.';
    const next = found.length > shown ? element('button', {type: 'button', id: 'further', onclick: () => {
      shown += PAGE;
      draw();
    }}, `${Math.min(PAGE, found.length - shown)} more of ${count(found.length - shown)}`) : null;
    list.replaceChildren(...found.slice(0, shown).map(card), ...(next ? [next] : []));
  }

  const field = (label, input, hidden = false) => element('label', {hidden}, label, input);
  const filters = element('div', {class: 'filters', role: 'group', 'aria-label': 'Which texts'}, columns.map(([, , label]) => label), layerLabel, multiplierLabel, promptLabel,
    field('words', words), scoreLabel, field('score from', low, !scoreNames.length), field('to', high, !scoreNames.length), field('order', order, !scoreNames.length), field('only where they differ', changed));
  draw();
  const unscored = scoreNames.length ? null : element('p', {class: 'quiet'}, 'There are no scores yet: vsteer score RUN makes some, and a new report filters by them.');
  return [note, filters, unscored, matched, list, more];
}
