// An HTTP server with a timer, a worker thread, a child process, and memory of its own.
'use strict';
const {spawn} = require('child_process');
const crypto = require('crypto');
const http = require('http');
const {Worker} = require('worker_threads');

const token = crypto.randomBytes(8).toString('hex');
const heap = crypto.randomBytes(4 << 20);
const objects = new Map(Array.from({length: 20000}, (_, i) => [`key ${i}`, {i, square: i * i}]));
const notes = [];
const ticks = {interval: 0, thread: 0, child: 0};

setInterval(() => ++ticks.interval, 20);
const worker = new Worker('const {parentPort} = require("worker_threads"); parentPort.on("message", (m) => parentPort.postMessage(m + 1));',
                          {eval: true});
worker.on('message', (n) => { ticks.thread = n; setTimeout(() => worker.postMessage(n), 20); });
worker.postMessage(0);
const child = spawn('cat');
child.stdout.on('data', (data) => { ticks.child += data.length; setTimeout(() => child.stdin.write('x'), 20); });
child.stdin.write('x');

function state() {
  let sum = 0;
  for (const value of objects.values()) sum += value.square;
  return {token, heap: crypto.createHash('sha256').update(heap).digest('hex'), objects: objects.size, sum, notes};
}

const routes = {
  '/health': () => ticks.thread && ticks.child ? 'ok' : undefined,
  '/state': state,
  '/live': () => ({errors: [], ticks}),
  '/change': (body) => { notes.push(body); objects.set(body, {square: 1}); },
};
http.createServer((request, response) => {
  let body = '';
  request.on('data', (data) => body += data);
  request.on('end', () => {
    const route = routes[request.url];
    const answer = route ? route(body) : undefined;
    response.statusCode = route && (answer !== undefined || request.method === 'POST') ? 200 : 503;
    response.end(JSON.stringify(answer ?? null));
  });
}).listen(8000, '0.0.0.0');
process.on('SIGTERM', () => process.exit(0));
