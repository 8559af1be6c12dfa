"use strict";
// Counter nodes on node-opcua, the OPC UA server that this project did not write.
//
// Global write number w goes to node w mod N with value floor(w / N) + 1, so that every node carries its
// own counter 1, 2, 3, ... and a lost sample is a missing integer. After each slice of writes the log
// gets "<writes so far> <unix time>". Started again with --first W the counters go on where they were.
//
// Control: one JSON object a line on stdin, one answer a line on stdout; what they are stands in
// tests/live/servers.py. The end of stdin ends the server, so that it never outlives its test.

const fs = require("node:fs");
const path = require("node:path");
const readline = require("node:readline");
const { parseArgs } = require("node:util");

console.log = console.info = console.warn = console.debug = console.error; // stdout is for answers alone

const {
  OPCUAServer, OPCUACertificateManager, RegisterServerMethod, StatusCodes, DataType, Variant, SecurityPolicy,
  MessageSecurityMode, coerceStatusCode,
} = require("node-opcua");

const NAMESPACE = "urn:edgemirror:test:counters";
const FOLDER = 200;
const SLICE_MS = 20;

const { values: options } = parseArgs({
  options: {
    port: { type: "string" },
    nodes: { type: "string", default: "10" },
    type: { type: "string", default: "Double" },
    first: { type: "string", default: "0" },
    log: { type: "string" },
    folder: { type: "string" },
    history: { type: "string", default: "0" },
    "max-sessions": { type: "string", default: "50" },
    "max-subscriptions": { type: "string", default: "50" },
    "max-queue": { type: "string", default: "100000" },
    // 0: every change is reported, as by a device with event-based nodes. Above, changes within that
    // many ms are coalesced, also where a sampling interval of 0 was asked for.
    "sample-ms": { type: "string", default: "0" },
  },
});
const count = Number(options.nodes);
const dataType = DataType[options.type];
const log = fs.openSync(options.log, "a");

let server, space;
let variables = [];
let written = Number(options.first);
let timer = null;
let stamp = 0; // source time in ms: each round of writes gets a later one, as history and merging need

const answer = (event) => process.stdout.write(JSON.stringify({ ...event, written }) + "\n");

function coerce(counter) {
  switch (dataType) {
    case DataType.Int64:
    case DataType.UInt64:
      return [Math.floor(counter / 0x100000000), counter >>> 0];
    case DataType.String:
      return String(counter);
    case DataType.Boolean:
      return counter % 2 === 1;
    default:
      return counter;
  }
}

function write(total) {
  stamp = Math.max(stamp + 1, Date.now());
  for (const end = written + total; written < end; written++) {
    if (written % count === 0) stamp += 1;
    const variable = variables[written % count];
    if (variable) {
      const value = coerce(Math.floor(written / count) + 1);
      variable.setValueFromSource({ dataType, value }, StatusCodes.Good, new Date(stamp));
    }
  }
  fs.writeSync(log, `${written} ${Date.now() / 1000}\n`);
}

function run(rate) {
  clearInterval(timer);
  const start = process.hrtime.bigint(), base = written;
  timer = setInterval(() => {
    const elapsed = Number(process.hrtime.bigint() - start) / 1e9;
    const due = base + Math.floor(elapsed * rate * count) - written;
    if (due > 0) write(due);
  }, SLICE_MS);
}

const commands = {
  run: ({ rate }) => run(rate),
  pause: () => { clearInterval(timer); timer = null; },
  write: ({ rounds }) => write(rounds * count),
  status: ({ node, code }) => {
    const value = variables[node].readValue().value;
    variables[node].setValueFromSource(new Variant(value), coerceStatusCode(code), new Date());
  },
  delete: ({ node }) => { space.deleteNode(variables[node]); variables[node] = null; },
  facts: () => ({
    sessions: server.engine.currentSessionCount,
    subscriptions: server.engine.currentSubscriptionCount,
  }),
  exit: () => process.exit(9), // as a crash: no session is closed
  stop: async () => { clearInterval(timer); await server.shutdown(0); answer({ event: "stopped" }); process.exit(0); },
};

function build() {
  space = server.engine.addressSpace;
  const own = space.registerNamespace(NAMESPACE);
  const top = own.addFolder(space.rootFolder.objects, { browseName: "Counters", nodeId: "s=Counters" });
  let folder = top;
  for (let i = 0; i < count; i++) {
    if (i % FOLDER === 0) {
      const name = `F${i / FOLDER}`;
      folder = own.addFolder(top, { browseName: name, nodeId: `s=${name}` });
    }
    const variable = own.addVariable({
      componentOf: folder, browseName: `c${i}`, nodeId: `s=c${i}`, dataType: options.type, minimumSamplingInterval: 0,
      accessLevel: "CurrentRead | HistoryRead",
    });
    const value = coerce(i < written % count ? Math.floor(written / count) + 1 : Math.floor(written / count));
    variable.setValueFromSource({ dataType, value }, StatusCodes.Good, new Date());
    if (Number(options.history)) {
      space.installHistoricalDataNode(variable, { maxOnlineValues: Number(options.history) });
    }
    variables.push(variable);
  }
}

async function main() {
  // Keys and certificates lie below the test's own folder; the default would be the home of the user.
  const keep = (name) => new OPCUACertificateManager({
    rootFolder: path.join(options.folder, name), automaticallyAcceptUnknownCertificate: true, disableFileWatchers: true,
  });
  server = new OPCUAServer({
    port: Number(options.port),
    host: "127.0.0.1",
    hostname: "127.0.0.1",
    allowAnonymous: true,
    userManager: { isValidUser: (user, password) => user === password },
    serverCertificateManager: keep("pki"),
    userCertificateManager: keep("user-pki"),
    serverInfo: { applicationUri: "urn:edgemirror:test:node-server" },
    registerServerMethod: RegisterServerMethod.HIDDEN,
    disableDiscovery: true,
    securityPolicies: [SecurityPolicy.None, SecurityPolicy.Basic256Sha256],
    securityModes: [MessageSecurityMode.None, MessageSecurityMode.SignAndEncrypt],
    maxConnectionsPerEndpoint: 100,
    serverCapabilities: {
      maxSessions: Number(options["max-sessions"]),
      maxSubscriptionsPerSession: Number(options["max-subscriptions"]),
      minSupportedSampleRate: Number(options["sample-ms"]),
      maxMonitoredItemsQueueSize: Number(options["max-queue"]),
      maxMonitoredItemsPerSubscription: 100000,
      operationLimits: { maxMonitoredItemsPerCall: 10000 },
    },
  });
  await server.initialize();
  build();
  await server.start();
  answer({
    event: "ready", pid: process.pid, namespace: NAMESPACE, uri: server.serverInfo.applicationUri,
    endpoint: `opc.tcp://127.0.0.1:${options.port}`,
  });
  const lines = readline.createInterface({ input: process.stdin });
  lines.on("line", async (line) => {
    const command = JSON.parse(line);
    try {
      answer({ event: "done", ...(await commands[command.do](command)) });
    } catch (error) {
      answer({ event: "failed", reason: String(error.stack || error) });
    }
  });
  lines.on("close", () => process.exit(0));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
