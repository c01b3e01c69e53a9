// The fold-out of settings: what stays in this browser, what only in this tab, and what of it goes into a request.

import { $ } from './dom.js';

const KEY = 'perilune.key';
const SETTINGS = 'perilune.settings';
const NUMBERS = ['temperature', 'max_tokens', 'top_p', 'top_k', 'min_p', 'seed', 'frequency_penalty', 'presence_penalty', 'repetition_penalty'];

const panel = $('settings');
const form = panel.querySelector('form');
const fields = [...form.elements].filter((field) => field.name);

/** Storage may be full, or forbidden. */
function store(storage, name, value) {
  try {
    storage.setItem(name, value);
  } catch {
    // Then it lasts as long as the page.
  }
}

export const apiKey = () => $('key').value.trim();

export function showSettings(focused) {
  panel.hidden = false;
  $('open-settings').setAttribute('aria-expanded', 'true');
  (focused || fields[0]).focus();
}

export function hideSettings() {
  panel.hidden = true;
  $('open-settings').setAttribute('aria-expanded', 'false');
  $('open-settings').focus();
}

const saved = () => Object.fromEntries([...fields.map((field) => [field.name, field.value]), ['model', $('model').value || wantedModel]]);
const save = () => store(localStorage, SETTINGS, JSON.stringify(saved()));

let wantedModel = '';

/** Fills the list; the model of last time stays chosen where it is still served. */
export function showModels(models) {
  $('model').replaceChildren(...models.map((model) => new Option(model, model)));
  if (models.includes(wantedModel)) $('model').value = wantedModel;
}

export function startSettings(onKey) {
  let values = {};
  try {
    values = JSON.parse(localStorage.getItem(SETTINGS)) || {};
    $('key').value = sessionStorage.getItem(KEY) || '';
  } catch {
    // Nothing was kept.
  }
  for (const field of fields) field.value = values[field.name] || '';
  wantedModel = values.model || '';
  form.addEventListener('submit', (event) => event.preventDefault());
  form.addEventListener('input', save);
  form.addEventListener('input', ({ target }) => target.setCustomValidity(''));
  $('model').addEventListener('change', save);
  $('key').addEventListener('input', () => store(sessionStorage, KEY, apiKey()));
  $('key').addEventListener('change', onKey);
  $('open-settings').addEventListener('click', () => (panel.hidden ? showSettings() : hideSettings()));
  $('close-settings').addEventListener('click', hideSettings);
  $('reset').addEventListener('click', () => {
    for (const field of fields) field.value = '';
    save();
  });
}

/** What the settings say, or `null` where one of them cannot be right: then it is shown. */
export function readSettings() {
  const value = (name) => form.elements[name].value;
  const more = parseMore(value('more'));
  form.elements.more.setCustomValidity(more ? '' : 'This is not a JSON object.');
  const wrong = fields.find((field) => !field.validity.valid);
  if (wrong) {
    showSettings(wrong);
    wrong.reportValidity();
    return null;
  }
  const numbers = NUMBERS.filter((name) => value(name) !== '').map((name) => [name, Number(value(name))]);
  const stop = value('stop').split('\n').filter((line) => line !== '');
  return {
    model: $('model').value,
    system: value('system').trim(),
    fields: {
      ...Object.fromEntries(numbers),
      ...(stop.length > 0 && { stop }),
      ...(value('reasoning_effort') && { reasoning_effort: value('reasoning_effort') }),
      ...more,
    },
  };
}

function parseMore(text) {
  if (text.trim() === '') return {};
  try {
    const more = JSON.parse(text);
    return typeof more === 'object' && more !== null && !Array.isArray(more) ? more : null;
  } catch {
    return null;
  }
}
