"use strict";
// The peer to beat on throughput: node-opcua -> SQLite, one transaction every 200 ms. WAL with
// synchronous=NORMAL, queue 10, sampling 0. Node's own SQLite, so that nothing has to be compiled.
//
//     node node_peer.js ENDPOINT SECONDS FOLDER

const path = require("node:path");
const { readFileSync } = require("node:fs");
const { DatabaseSync } = require("node:sqlite");

console.log = console.info = console.warn = console.debug = console.error; // stdout is for the result alone

const {
  OPCUAClient, OPCUACertificateManager, ClientMonitoredItemGroup, TimestampsToReturn, AttributeIds, NodeClass,
  BrowseDirection,
} = require("node-opcua");

const [endpoint, seconds, folder] = process.argv.slice(2);
const FLUSH_MS = 200;
const SETTLE_S = 1.0;
const AT_ONCE = 1000;

const db = new DatabaseSync(path.join(folder, "node.db"));
db.exec("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; CREATE TABLE samples (node TEXT, ts REAL, value)");
const insert = db.prepare("INSERT INTO samples VALUES (?, ?, ?)");

let rows = [];
let total = 0, changes = 0, first = null, began = null;

function flush() {
  const batch = rows;
  rows = [];
  if (batch.length) {
    db.exec("BEGIN");
    for (const [node, ts, value] of batch) insert.run(node, ts, value);
    db.exec("COMMIT");
  }
  total += batch.length;
  if (!batch.length && first === null) return;
  const now = performance.now() / 1000;
  first ??= now;
  if (began !== null) changes += batch.length;
  else if (now - first >= SETTLE_S) began = { at: now, cpu: process.cpuUsage() };
}

function lost() {
  const odd = db.prepare("SELECT count(*) n FROM samples WHERE typeof(value) = 'text' OR value != round(value)").get();
  const nodes = db.prepare("SELECT count(DISTINCT value) k, min(value) a, max(value) b FROM samples GROUP BY node").all();
  const missing = nodes.reduce((sum, { k, a, b }) => sum + (b - a + 1 - k), 0);
  return { nodes: nodes.length, lost: odd.n ? null : missing };
}

const round = (x, digits) => Number(x.toFixed(digits));

function result(started) {
  const now = performance.now() / 1000;
  const cpu = began ? process.cpuUsage(began.cpu) : { user: 0, system: 0 };
  const cpuMicros = cpu.user + cpu.system;
  const peak = Number(/VmHWM:\s+(\d+)/.exec(readFileSync("/proc/self/status", "utf8"))[1]) / 1024;
  return {
    peer: "node", changes: total, seconds: round(now - started, 3), cpu_s: round(cpuMicros / 1e6, 3),
    rate_per_s: changes ? round(changes / (now - began.at), 1) : 0,
    us_per_change: changes ? round(cpuMicros / changes, 3) : null, rss_mib: round(peak, 1),
  };
}

async function variables(session) {
  const found = [], seen = new Set();
  let folders = ["i=85"];
  const take = (results) => {
    const next = [];
    for (const { references } of results) {
      for (const { nodeId, nodeClass } of references ?? []) {
        const id = nodeId.toString();
        if (nodeId.namespace < 2 || seen.has(id)) continue;
        seen.add(id);
        (nodeClass === NodeClass.Variable ? found : next).push(id);
      }
    }
    return next;
  };
  while (folders.length) {
    const next = [];
    for (let i = 0; i < folders.length; i += 50) {
      let results = await session.browse(folders.slice(i, i + 50).map((nodeId) => ({
        nodeId, referenceTypeId: "i=33", includeSubtypes: true, browseDirection: BrowseDirection.Forward,
        nodeClassMask: 3, resultMask: 63,
      })));
      next.push(...take(results));
      let points = results.map((r) => r.continuationPoint).filter((p) => p && p.length);
      while (points.length) {
        results = await session.browseNext(points, false);
        next.push(...take(results));
        points = results.map((r) => r.continuationPoint).filter((p) => p && p.length);
      }
    }
    folders = next;
  }
  return found;
}

async function main() {
  const started = performance.now() / 1000;
  const client = OPCUAClient.create({
    endpointMustExist: false,
    clientCertificateManager: new OPCUACertificateManager({
      rootFolder: path.join(folder, "pki"), automaticallyAcceptUnknownCertificate: true, disableFileWatchers: true,
    }),
  });
  await client.connect(endpoint);
  const session = await client.createSession();
  const subscription = await session.createSubscription2({
    requestedPublishingInterval: 200, requestedLifetimeCount: 1000, requestedMaxKeepAliveCount: 10,
    maxNotificationsPerPublish: 0, publishingEnabled: true, priority: 0,
  });
  const nodes = await variables(session);
  const names = nodes.map((id) => id.replace(/^ns=\d+;[a-z]=/, ""));
  for (let i = 0; i < nodes.length; i += AT_ONCE) {
    const items = nodes.slice(i, i + AT_ONCE).map((nodeId) => ({ nodeId, attributeId: AttributeIds.Value }));
    const group = ClientMonitoredItemGroup.create(
      subscription, items, { samplingInterval: 0, queueSize: 10, discardOldest: true }, TimestampsToReturn.Both);
    group.on("changed", (item, dataValue, index) => {
      const value = dataValue.value.value;
      const plain = typeof value === "number" || value === null ? value : String(value);
      rows.push([names[i + index], dataValue.sourceTimestamp ? dataValue.sourceTimestamp.getTime() / 1000 : 0, plain]);
    });
  }
  const timer = setInterval(flush, FLUSH_MS);
  await new Promise((resolve) => setTimeout(resolve, Math.max(0, (Number(seconds) - (performance.now() / 1000 - started)) * 1000)));
  clearInterval(timer);
  flush();
  const figures = result(started);
  process.stdout.write(JSON.stringify({ ...figures, ...lost() }) + "\n", () => process.exit(0));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
