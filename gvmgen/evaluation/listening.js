'use strict';
const test = JSON.parse(document.getElementById('test').textContent);
const store = 'gvm-eval listen ' + test.id;
const at = (id) => document.getElementById(id);
const pick = (n) => crypto.getRandomValues(new Uint32Array(1))[0] % n;

function shuffled(list) {
  const found = [...list];
  for (let i = found.length - 1; i > 0; i--) {
    const j = pick(i + 1);
    [found[i], found[j]] = [found[j], found[i]];
  }
  return found;
}

// Films in any order; within one, the systems in the orders of a balanced square, from a random row on.
function newState() {
  const first = pick(test.orders.length);
  const films = shuffled(test.films).slice(0, test.films_per_listener);
  return {
    listener: [...crypto.getRandomValues(new Uint8Array(8))].map((b) => b.toString(16).padStart(2, '0')).join(''),
    expert: null,
    order: films.flatMap((film, i) => test.orders[(first + i) % test.orders.length].map((n) => film[n])),
    position: 0,
    heard: {},
    answers: {},
  };
}

let state;
try {
  state = JSON.parse(localStorage.getItem(store)) || newState();
} catch {
  state = newState();
}
function save() {
  try {
    localStorage.setItem(store, JSON.stringify(state));
  } catch { /* a browser that keeps nothing: the test goes on, but must be taken in one go */ }
}

const film = at('film');
let question = 0;
const trial = () => state.order[state.position];
const answers = () => (state.answers[trial()] ||= {});

function show(id) {
  for (const main of document.querySelectorAll('main')) main.hidden = main.id !== id;
}

function buildScales() {
  for (const [name, title, low, high] of test.scales) {
    const field = document.createElement('fieldset');
    field.dataset.scale = name;
    field.append(Object.assign(document.createElement('legend'), { textContent: title }));
    const row = Object.assign(document.createElement('div'), { className: 'scale' });
    for (let value = 1; value <= 7; value++) {
      const label = document.createElement('label');
      label.append(Object.assign(document.createElement('input'), { type: 'radio', name, value }));
      label.append(document.createElement('br'), String(value));
      row.append(label);
    }
    const ends = Object.assign(document.createElement('div'), { className: 'ends' });
    for (const text of [low, high]) ends.append(Object.assign(document.createElement('span'), { textContent: text }));
    field.append(row, ends);
    field.addEventListener('change', (event) => rate(name, Number(event.target.value)));
    field.addEventListener('focusin', () => mark(test.scales.findIndex((scale) => scale[0] === name)));
    at('scales').append(field);
  }
}

function mark(n) {
  question = n;
  at('scales').querySelectorAll('fieldset').forEach((field, i) => field.classList.toggle('now', i === n));
}

function rate(name, value) {
  answers()[name] = value;
  save();
  refresh();
}

function refresh() {
  const given = answers(), isHeard = Boolean(state.heard[trial()]);
  for (const input of at('scales').querySelectorAll('input')) input.checked = given[input.name] === Number(input.value);
  at('next').disabled = !(isHeard && test.scales.every(([name]) => given[name]));
  at('hint').textContent = isHeard ? '' : 'Please watch it to its end once.';
  at('play').textContent = film.paused ? 'Play' : 'Stop';
}

function open() {
  if (state.position >= state.order.length) return finish();
  show('trial');
  at('where').textContent = `${state.position + 1} of ${state.order.length}`;
  Object.assign(at('done'), { max: state.order.length, value: state.position });
  URL.revokeObjectURL(film.src);
  const bytes = Uint8Array.from(atob(test.media[trial()]), (letter) => letter.charCodeAt(0));
  film.src = URL.createObjectURL(new Blob([bytes], { type: 'video/mp4' }));
  mark(0);
  refresh();
}

function toggle() {
  if (film.paused) film.play(); else film.pause();
}

function next() {
  if (at('next').disabled) return;
  state.position++;
  save();
  open();
}

function finish() {
  film.pause();
  show('end');
  const results = {
    kind: 'gvm-eval listening results',
    version: 1,
    test: test.id,
    listener: state.listener,
    expert: state.expert,
    answers: state.order.map((code, position) => ({ trial: code, position, ...state.answers[code] })),
  };
  const blob = new Blob([JSON.stringify(results, null, 1)], { type: 'application/json' });
  Object.assign(at('save'), { href: URL.createObjectURL(blob), download: `listening-${state.listener}.json` });
  at('save').focus();
}

function onKey(event) {
  if (at('trial').hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const last = test.scales.length - 1;
  if (/^[1-7]$/.test(event.key)) {
    rate(test.scales[question][0], Number(event.key));
    mark(Math.min(question + 1, last));
  } else if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
    mark(Math.min(last, Math.max(0, question + (event.key === 'ArrowDown' ? 1 : -1))));
  } else if (event.key === ' ' && event.target.tagName !== 'BUTTON') {
    toggle();
  } else if (event.key === 'Enter' && event.target.tagName !== 'BUTTON') {
    next();
  } else {
    return;
  }
  event.preventDefault();
}

film.addEventListener('ended', () => {
  state.heard[trial()] = true;
  save();
  refresh();
});
for (const name of ['play', 'pause']) film.addEventListener(name, refresh);
at('play').addEventListener('click', toggle);
at('next').addEventListener('click', next);
at('scales').addEventListener('submit', (event) => event.preventDefault());
document.addEventListener('keydown', onKey);
at('expert').addEventListener('change', (event) => {
  state.expert = event.target.value === 'yes';
  at('start').disabled = false;
});
at('start').addEventListener('click', () => {
  save();
  open();
});
buildScales();
at('count').textContent = state.order.length;
if (state.expert === null) show('welcome'); else open();
