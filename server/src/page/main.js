// The page's state and what its controls do: one conversation, one running request.

import { ApiError, complete, curl, listModels, merge, newAnswer, requestFor } from './api.js';
import { $, copyAndTell, el, icon, toast } from './dom.js';
import { readPictures, samplePicture, total } from './pictures.js';
import { apiKey, hideSettings, readSettings, showModels, showSettings, startSettings } from './settings.js';
import { keyWanted, View } from './view.js';

const CHAT = 'perilune.chat';

let messages = [];
/** Pictures of the next message. */
let pictures = [];
/** Ends the running request. */
let running = null;
/** Whether the view follows the answer. */
let follows = true;

const view = new View($('log'), {
  again: regenerate,
  edit: editLast,
  curl: copyCurl,
  key: () => showSettings($('key')),
  results: (results) => extend(results),
});

// Models, and whether the server is there at all.

async function loadModels() {
  try {
    showModels(await listModels(apiKey()));
    notice();
  } catch (error) {
    showModelError(error);
  }
}

function showModelError(error) {
  if (error.status === 401) {
    notice(keyWanted(apiKey() !== ''), { label: 'Enter the API key', run: () => showSettings($('key')) });
  } else if (error.status === 503) {
    notice('The model is being loaded…');
    setTimeout(loadModels, 1000 * (error.retryAfter || 1));
  } else {
    notice(`No list of models: ${error.message}.`, { label: 'Try again', run: loadModels });
  }
}

function notice(text, action) {
  $('notice').hidden = !text;
  $('notice').replaceChildren(text || '',
    ...(action ? [el('button', { type: 'button', class: 'plain', click: action.run }, action.label)] : []));
}

// The conversation.

function send() {
  const text = $('prompt').value.trim();
  if (running || (text === '' && pictures.length === 0)) return;
  const message = { role: 'user', text, pictures };
  if (!extend([message])) return;
  $('prompt').value = '';
  pictures = [];
  showComposer();
}

/** Adds messages and asks for an answer. Says whether it did: not while one is running, nor with settings that cannot be right. */
function extend(added) {
  const settings = running ? null : readSettings();
  if (!settings) return false;
  for (const message of added) {
    messages.push(message);
    view.add(message);
  }
  answer(settings);
  return true;
}

async function answer(settings) {
  const request = requestFor(messages, settings);
  const message = { ...newAnswer(settings.model), request };
  const controller = new AbortController();
  messages.push(message);
  view.add(message);
  follows = true;
  setRunning(controller);
  save();
  try {
    await receive(message, request, controller.signal);
  } catch (error) {
    if (controller.signal.aborted) message.stopped = true;
    else message.error = errorData(error);
  }
  message.done = true;
  view.finish(message);
  setRunning(null);
  save();
  announce(message);
}

async function receive(message, request, signal) {
  const sent = performance.now();
  const onHead = (headers) => {
    message.requestId = headers.get('x-request-id');
    message.ignored = headers.get('x-ignored-params');
  };
  for await (const chunk of complete(request, { key: apiKey(), signal, onHead })) {
    if (merge(message, chunk)) noteTimes(message, performance.now() - sent);
    view.update(message, follow);
  }
}

function noteTimes(message, now) {
  message.firstMs ??= now;
  message.lastMs = now;
  if (message.reasoning && (message.text || message.calls.length > 0)) message.thoughtMs ??= now - message.firstMs;
}

function errorData(error) {
  if (!(error instanceof ApiError)) console.error(error);
  const { status, message, code, param } = error;
  return { status, message, code, param, hasKey: apiKey() !== '' };
}

function setRunning(controller) {
  running = controller;
  const hadFocus = [$('send'), $('stop')].includes(document.activeElement);
  $('send').hidden = running !== null;
  $('stop').hidden = running === null;
  document.body.classList.toggle('busy', running !== null);
  if (running) $('status').textContent = 'Waiting for the answer';
  if (hadFocus) $('prompt').focus();
  showEmpty();
  follow();
}

function announce({ error, stopped, text }) {
  $('status').textContent = error ? '' : `${stopped ? 'Stopped' : 'Answer'}: ${text}`;
}

function regenerate() {
  const last = messages.at(-1);
  const settings = running ? null : readSettings();
  if (!settings || last?.role !== 'assistant') return;
  messages.pop();
  view.remove(last);
  answer(settings);
}

function editLast() {
  const at = messages.findLastIndex(({ role }) => role === 'user');
  if (running || at < 0) return;
  const before = snapshot();
  const { text, pictures: attached } = messages[at];
  restore({ messages: messages.slice(0, at), pictures: attached, text });
  toast('Editing the last message', { label: 'Undo', run: () => restore(before) });
}

function clear() {
  running?.abort();
  if (messages.length > 0) {
    const before = snapshot();
    toast('Conversation cleared', { label: 'Undo', run: () => restore(before) });
  }
  restore({ messages: [], pictures: [], text: '' });
}

const snapshot = () => ({ messages, pictures, text: $('prompt').value });

function restore(state) {
  ({ messages, pictures } = state);
  $('prompt').value = state.text;
  view.reset(messages);
  showComposer();
  showEmpty();
  save();
  $('prompt').focus();
}

function showEmpty() {
  $('welcome').hidden = messages.length > 0;
  $('new').disabled = $('export').disabled = messages.length === 0;
}

// What leaves the page otherwise.

function copyCurl(message) {
  const settings = message.request ? null : readSettings();
  const request = message.request || (settings && requestFor(messages.slice(0, messages.indexOf(message)), settings));
  if (request) copyAndTell(curl(request, apiKey() !== ''), 'curl command');
}

const plain = (messages) => messages.map(({ request, ...message }) => message);

function exportChat() {
  const settings = readSettings();
  if (!settings) return;
  const { messages: openai } = requestFor(messages, settings);
  const content = { exported: new Date().toISOString(), server: location.origin, settings, messages: openai, details: plain(messages).map(withoutPictures) };
  const url = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2)], { type: 'application/json' }));
  el('a', { href: url, download: `perilune-${content.exported.slice(0, 19).replaceAll(':', '')}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

const withoutPictures = ({ pictures, ...message }) => message;

/** A reload keeps the conversation, in this tab, where its pictures are not too large for that. */
function save() {
  try {
    sessionStorage.setItem(CHAT, JSON.stringify(plain(messages)));
  } catch {
    sessionStorage.removeItem(CHAT);
  }
}

function load() {
  try {
    messages = (JSON.parse(sessionStorage.getItem(CHAT)) || []).map(ended);
    view.reset(messages);
  } catch {
    messages = [];
    view.reset(messages);
  }
}

/** An answer that was still coming when the page went away has ended there. */
const ended = (message) => (message.role !== 'assistant' || message.done ? message : { ...message, done: true, stopped: true });

// The composer.

function showComposer() {
  $('thumbs').hidden = pictures.length === 0;
  $('thumbs').replaceChildren(...pictures.map((picture, i) => el('li', {},
    el('img', { src: picture.url, alt: picture.name }),
    el('button', { type: 'button', 'aria-label': `Remove ${picture.name}`, title: 'Remove', click: () => detach(i) }, icon('close')))));
  const prompt = $('prompt');
  prompt.style.height = 'auto';
  prompt.style.height = `${prompt.scrollHeight}px`;
}

function detach(at) {
  pictures = pictures.filter((_, i) => i !== at);
  showComposer();
  $('prompt').focus();
}

async function attach(files) {
  const used = messages.reduce((sum, message) => sum + total(message.pictures || []), total(pictures));
  try {
    const added = await readPictures(files, used);
    pictures = [...pictures, ...added];
    showComposer();
    $('status').textContent = `${added.length} attached`;
  } catch (error) {
    toast(error.message);
  }
  $('prompt').focus();
}

function ideas() {
  const ask = (text, attached = []) => () => {
    $('prompt').value = text;
    pictures = attached;
    send();
  };
  const sample = samplePicture();
  $('ideas').append(
    el('button', { type: 'button', click: ask('Hello! Who are you?') }, 'Hello! Who are you?'),
    el('button', { type: 'button', click: ask('What is 3 + 4?') }, 'What is 3 + 4?'),
    el('button', { type: 'button', click: ask('Describe the picture.', [sample]) },
      el('img', { src: sample.url, alt: 'A circle and a star' }), 'Describe the picture.'));
}

function onPromptKey(event) {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  } else if (event.key === 'ArrowUp' && event.target.value === '' && pictures.length === 0) {
    editLast();
  }
}

function onKey(event) {
  if (event.key !== 'Escape' || event.isComposing) return;
  if (running) running.abort();
  else if ($('settings').contains(document.activeElement)) hideSettings();
}

const filesOf = (transfer) => [...(transfer?.files || [])];

function onPaste(event) {
  const files = filesOf(event.clipboardData);
  if (files.length === 0) return;
  event.preventDefault();
  attach(files);
}

function listenForDrops() {
  const carries = (event) => event.dataTransfer?.types.includes('Files');
  const mark = (on) => document.body.classList.toggle('dropping', on);
  document.addEventListener('dragover', (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    mark(true);
  });
  document.addEventListener('dragleave', (event) => { if (!event.relatedTarget) mark(false); });
  document.addEventListener('drop', (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    mark(false);
    attach(filesOf(event.dataTransfer));
  });
}

// Where the view is.

function follow() {
  if (follows) $('scroll').scrollTop = $('scroll').scrollHeight;
}

function onScroll() {
  const { scrollHeight, scrollTop, clientHeight } = $('scroll');
  follows = scrollHeight - scrollTop - clientHeight < 60;
  $('to-end').hidden = follows;
}

function start() {
  startSettings(loadModels);
  $('composer').addEventListener('submit', (event) => { event.preventDefault(); send(); });
  $('prompt').addEventListener('keydown', onPromptKey);
  $('prompt').addEventListener('input', showComposer);
  $('attach').addEventListener('click', () => $('files').click());
  $('files').addEventListener('change', ({ target }) => { attach([...target.files]); target.value = ''; });
  $('stop').addEventListener('click', () => running?.abort());
  $('new').addEventListener('click', clear);
  $('export').addEventListener('click', exportChat);
  $('to-end').addEventListener('click', () => { follows = true; follow(); });
  $('scroll').addEventListener('scroll', onScroll);
  document.addEventListener('keydown', onKey);
  document.addEventListener('paste', onPaste);
  listenForDrops();
  ideas();
  load();
  showEmpty();
  showComposer();
  follow();
  loadModels();
}

start();
