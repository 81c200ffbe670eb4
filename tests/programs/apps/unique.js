// Draws random numbers: from generators that lie in memory, and, after GET /reseed, from the kernel.
'use strict';
const crypto = require('crypto');
const fs = require('fs');
const http = require('http');

crypto.randomBytes(1);
const drawn = {};
function reseed() {
  drawn.kept = {math: Math.random(), crypto: crypto.randomBytes(8).toString('hex')};
  const bytes = Buffer.alloc(8), file = fs.openSync('/dev/urandom');
  fs.readSync(file, bytes);
  fs.closeSync(file);
  drawn.fresh = {urandom: bytes.toString('hex')};
}
http.createServer((request, response) => {
  if (request.url === '/reseed') reseed();
  response.end(JSON.stringify(drawn));
}).listen(8000, '0.0.0.0');
