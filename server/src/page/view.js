// The conversation on the page. A message is shown from its data alone, so that what was kept is shown like what just came.

import { copyAndTell, el, icon, iconButton } from './dom.js';
import { showMarkdown } from './markdown.js';

/** `actions` are what buttons in messages do: `again`, `edit`, `curl`, `key`, `results`. */
export class View {
  constructor(log, actions) {
    this.log = log;
    this.actions = actions;
    this.shown = new Map();
    this.changed = new Set();
  }

  reset(messages) {
    this.log.replaceChildren();
    this.shown.clear();
    this.changed.clear();
    messages.forEach((message) => this.add(message));
  }

  add(message) {
    const make = { user: userMessage, tool: toolMessage, assistant: assistantMessage }[message.role];
    const shown = make(message, this.actions);
    this.shown.set(message, shown);
    this.log.append(shown.article);
    shown.update?.();
  }

  /** Shows a change of a message with the next frame, or at once where it was the last. */
  update(message, onShown) {
    if (this.changed.has(message)) return;
    this.changed.add(message);
    requestAnimationFrame(() => {
      if (!this.changed.delete(message)) return;
      this.shown.get(message)?.update();
      onShown();
    });
  }

  finish(message) {
    this.changed.delete(message);
    this.shown.get(message)?.update();
  }

  remove(message) {
    this.shown.get(message)?.article.remove();
    this.shown.delete(message);
  }
}

function article(role, label, ...children) {
  return el('article', { class: `message ${role}`, 'aria-label': label }, children);
}

function userMessage(message, actions) {
  const pictures = message.pictures.map(({ url, name }) => el('img', { src: url, alt: name, title: name }));
  return {
    article: article('user', 'You',
      pictures.length > 0 && el('div', { class: 'pictures' }, pictures),
      message.text && el('div', { class: 'bubble' }, message.text),
      el('footer', {},
        iconButton('edit', 'Edit', () => actions.edit()),
        message.text && iconButton('copy', 'Copy message', () => copyAndTell(message.text, 'Message')))),
  };
}

function toolMessage(message) {
  return {
    article: article('tool', `Result of ${message.name}`,
      el('div', { class: 'call' },
        el('p', { class: 'call-name' }, icon('tool'), 'Result of ', el('code', {}, message.name)),
        el('pre', { tabindex: '0' }, message.text))),
  };
}

function assistantMessage(message, actions) {
  const who = el('p', { class: 'who' });
  const summary = el('summary');
  const thought = el('div', { class: 'text' });
  const reasoning = el('details', { class: 'reasoning' }, summary, thought);
  const waiting = el('p', { class: 'waiting', 'aria-label': 'Waiting for the first word' }, el('i'), el('i'), el('i'));
  const text = el('div', { class: 'text' });
  const calls = el('div', { class: 'calls' });
  const error = el('div', { class: 'error', role: 'alert' });
  const numbers = el('details', { class: 'numbers' });
  const copy = iconButton('copy', 'Copy answer', () => copyAndTell(message.text, 'Answer'));
  const footer = el('footer', {},
    copy,
    iconButton('curl', 'Copy request as curl', () => actions.curl(message)),
    el('span', { class: 'again' }, iconButton('again', 'Regenerate', () => actions.again())),
    numbers);

  const update = () => {
    const hasStarted = message.text || message.reasoning || message.calls.length > 0;
    who.textContent = message.model || 'Assistant';
    waiting.hidden = Boolean(message.done || hasStarted);
    reasoning.hidden = !message.reasoning;
    summary.textContent = reasoningTitle(message);
    showMarkdown(thought, message.reasoning);
    showMarkdown(text, message.text);
    text.hidden = copy.hidden = !message.text;
    showCalls(calls, message, actions);
    error.hidden = !message.error;
    if (message.error) showError(error, message.error, actions);
    node.classList.toggle('open', !message.done);
    node.setAttribute('aria-busy', String(!message.done));
    showNumbers(numbers, message);
  };
  const node = article('assistant', 'Answer', who, reasoning, waiting, text, calls, error, footer);
  return { article: node, update };
}

function reasoningTitle({ thoughtMs, done }) {
  if (thoughtMs > 50) return `Thought for ${duration(thoughtMs)}`;
  if (thoughtMs !== undefined) return 'Thoughts';
  return done ? 'Unfinished thoughts' : 'Thinking…';
}

function showCalls(node, message, actions) {
  node.hidden = message.calls.length === 0;
  if (node.hidden || message.done && node.querySelector('form')) return;
  node.replaceChildren(...message.calls.filter(Boolean).map(({ function: { name, arguments: text } }) =>
    el('div', { class: 'call' },
      el('p', { class: 'call-name' }, icon('tool'), 'Calls ', el('code', {}, name)),
      el('pre', { tabindex: '0' }, pretty(text)))));
  if (message.done && !message.error) node.append(resultsForm(message.calls.filter(Boolean), actions));
}

/** The reader plays the tools. Only shown below the last message. */
function resultsForm(calls, actions) {
  const areas = calls.map((call) => el('textarea', { rows: '2', required: true, spellcheck: 'false', placeholder: 'What the tool says' }));
  const labels = calls.map((call, i) => el('label', {}, `Result of ${call.function.name}`, areas[i]));
  const send = (event) => {
    event.preventDefault();
    actions.results(calls.map((call, i) => ({ role: 'tool', callId: call.id, name: call.function.name, text: areas[i].value })));
  };
  return el('form', { class: 'results', submit: send }, labels, el('button', { class: 'plain' }, 'Send results'));
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

export const keyWanted = (hasKey) => (hasKey ? 'The server does not accept this API key.' : 'This server wants an API key.');

function showError(node, { status, message, code, param, hasKey }, actions) {
  const button = (label, click) => el('button', { type: 'button', class: 'plain', click }, label);
  const needsKey = status === 401;
  const details = [needsKey && message, status > 0 && `status ${status}`, code, param && `field ${param}`];
  node.replaceChildren(
    el('p', {}, needsKey ? keyWanted(hasKey) : message),
    el('p', { class: 'note' }, details.filter(Boolean).join(' · ')),
    el('div', { class: 'row' }, needsKey && button('Enter the API key', () => actions.key()), button('Try again', () => actions.again())));
}

export function duration(ms) {
  return ms < 1000 ? `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

/** Tokens after the first in a second: by the server's clock where it says so, else by ours. */
function rate({ usage, timings, firstMs, lastMs }) {
  const ms = timings?.decode_ms ?? lastMs - firstMs;
  return usage?.completion_tokens > 1 && ms > 0 ? (usage.completion_tokens - 1) / (ms / 1000) : null;
}

function showNumbers(node, message) {
  const { usage, firstMs, stopped, finish } = message;
  const speed = rate(message);
  const tokens = usage?.completion_tokens;
  const parts = [
    tokens !== undefined && `${tokens} ${tokens === 1 ? 'token' : 'tokens'}`,
    speed && `${speed < 10 ? speed.toFixed(1) : Math.round(speed)} tok/s`,
    firstMs !== undefined && `first token ${duration(firstMs)}`,
    stopped && 'stopped',
    finish === 'length' && 'cut at the token limit',
    message.done && !message.error && !stopped && !message.text && !message.calls.length && 'no text',
  ].filter(Boolean).map((part) => part.replaceAll(' ', '\u00a0'));
  node.hidden = parts.length === 0;
  if (node.hidden) return;
  const rows = numberRows(message).filter(([, value]) => value !== undefined && value !== null && value !== '');
  node.replaceChildren(
    el('summary', {}, parts.join(' · ')),
    el('dl', {}, rows.map(([name, value]) => [el('dt', {}, name), el('dd', {}, String(value))])));
}

const TIMES = { queue_ms: 'Queue', vision_ms: 'Pictures', prefill_ms: 'Prefill', decode_ms: 'Decode', device_ms: 'Device, its share' };

function numberRows({ usage, timings, firstMs, finish, requestId, ignored }) {
  const times = Object.entries(TIMES).map(([name, label]) => [label, timings?.[name] !== undefined ? duration(timings[name]) : null]);
  return [
    ['First token', firstMs !== undefined ? duration(firstMs) : null],
    ...times,
    ['Prompt tokens', usage?.prompt_tokens],
    ['… cached', usage?.prompt_tokens_details?.cached_tokens ?? timings?.cached_tokens],
    ['Answer tokens', usage?.completion_tokens],
    ['… reasoning', usage?.completion_tokens_details?.reasoning_tokens],
    ['Ended by', finish],
    ['Ignored fields', ignored],
    ['Request', requestId],
  ];
}
