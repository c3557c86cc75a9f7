-- The tables of controller and region: the controller's store and the region's ledger are the same
-- tables, so that one set of named methods (and one set of tests) serves both. A table that one of
-- them does not need stays empty there. Times are microseconds since 1970. Ids are BLOBs of 16
-- bytes. Every row of a tenant's things names its tenant. Migrations only go forward; a released
-- statement is never edited, a new version is added below.

CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE regions (
  name TEXT PRIMARY KEY,
  tenant TEXT NOT NULL,
  created_us INTEGER NOT NULL,
  access_server TEXT NOT NULL DEFAULT '',
  addresses TEXT NOT NULL DEFAULT '[]',      -- JSON array of host:port
  url TEXT NOT NULL DEFAULT '',
  last_seen_us INTEGER NOT NULL DEFAULT 0,
  version TEXT NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;

CREATE TABLE hosts (
  id BLOB PRIMARY KEY,
  name TEXT NOT NULL,
  tenant TEXT NOT NULL,
  region TEXT NOT NULL,
  labels TEXT NOT NULL DEFAULT '{}',         -- JSON object
  key_hash BLOB NOT NULL,                    -- SHA-256 of the public key it enrolled with
  sealing_key BLOB NOT NULL DEFAULT x'',
  token_id TEXT NOT NULL DEFAULT '',
  enrolled_us INTEGER NOT NULL,
  epoch INTEGER NOT NULL DEFAULT 0,          -- highest seen
  certificate_counter INTEGER NOT NULL DEFAULT 0,
  certificate_key_hash BLOB NOT NULL DEFAULT x'',
  certificate BLOB NOT NULL DEFAULT x'',     -- region: the last answer, so that asking twice gives it twice
  certificate_not_after_us INTEGER NOT NULL DEFAULT 0,
  held TEXT NOT NULL DEFAULT '',             -- why it is held; empty: it is not
  revoked_us INTEGER NOT NULL DEFAULT 0,
  last_seen_us INTEGER NOT NULL DEFAULT 0,
  facts BLOB NOT NULL DEFAULT x''            -- encoded HostFacts, as last told
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX hosts_by_name ON hosts (tenant, name) WHERE revoked_us = 0;

CREATE TABLE commands (
  id BLOB PRIMARY KEY,
  tenant TEXT NOT NULL,
  host BLOB NOT NULL,
  region TEXT NOT NULL,
  kind TEXT NOT NULL,
  target TEXT NOT NULL,
  issuer TEXT NOT NULL,
  token_id TEXT NOT NULL DEFAULT '',
  signed BLOB NOT NULL,                      -- encoded SignedCommand
  request_hash BLOB NOT NULL DEFAULT x'',    -- controller: tells a repeated request from another one
  state TEXT NOT NULL,
  code TEXT NOT NULL DEFAULT '',
  message TEXT NOT NULL DEFAULT '',
  exit_code INTEGER,
  container_id TEXT NOT NULL DEFAULT '',
  body BLOB NOT NULL DEFAULT x'',
  body_truncated INTEGER NOT NULL DEFAULT 0,
  stamps BLOB NOT NULL DEFAULT x'',          -- encoded CommandResult that holds only stamps
  issued_us INTEGER NOT NULL,
  not_after_us INTEGER NOT NULL,
  finished_us INTEGER NOT NULL DEFAULT 0,
  place INTEGER NOT NULL,                    -- order of acceptance here
  cancel_by TEXT NOT NULL DEFAULT ''         -- who withdrew it; empty: nobody
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX commands_by_place ON commands (place);
CREATE INDEX commands_by_host ON commands (host, place);
CREATE INDEX commands_open ON commands (host, place) WHERE finished_us = 0;

-- What is owed to the peer of an uplink, in order. `peer` is the region's name at the controller
-- and 'centre' in a region.
CREATE TABLE outbox (
  peer TEXT NOT NULL,
  seq INTEGER NOT NULL,
  payload BLOB NOT NULL,                     -- encoded Numbered
  PRIMARY KEY (peer, seq)
) STRICT, WITHOUT ROWID;
-- Numbers given out and taken, per peer; survives emptying the outbox.
CREATE TABLE exchange (
  peer TEXT PRIMARY KEY,
  sent INTEGER NOT NULL DEFAULT 0,           -- highest number given to a message to the peer
  taken INTEGER NOT NULL DEFAULT 0           -- highest number of the peer that is on our disk
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id BLOB NOT NULL UNIQUE,                   -- the same when sent again: stored once
  at_us INTEGER NOT NULL,
  tenant TEXT NOT NULL,
  host BLOB NOT NULL DEFAULT x'',
  region TEXT NOT NULL DEFAULT '',
  payload BLOB NOT NULL                      -- encoded HostEvent
) STRICT;
CREATE INDEX events_by_host ON events (host, seq);

CREATE TABLE audit (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  at_us INTEGER NOT NULL,
  tenant TEXT NOT NULL,
  actor TEXT NOT NULL,
  source TEXT NOT NULL DEFAULT '',
  action TEXT NOT NULL,
  object TEXT NOT NULL DEFAULT '',
  outcome TEXT NOT NULL,
  detail TEXT NOT NULL DEFAULT '',
  hash BLOB NOT NULL                         -- over this row and the previous row's hash
) STRICT;

CREATE TABLE api_tokens (
  id TEXT PRIMARY KEY,
  tenant TEXT NOT NULL,
  name TEXT NOT NULL,
  secret_hash BLOB NOT NULL,
  permissions TEXT NOT NULL,                 -- JSON array
  scope TEXT NOT NULL,                       -- JSON object
  created_by TEXT NOT NULL,
  created_us INTEGER NOT NULL,
  expires_us INTEGER NOT NULL DEFAULT 0,     -- 0: until revoked
  last_used_us INTEGER NOT NULL DEFAULT 0,
  revoked_us INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE TABLE join_tokens (
  id TEXT PRIMARY KEY,
  tenant TEXT NOT NULL,
  purpose TEXT NOT NULL,                     -- 'host' or 'access-server'
  region TEXT NOT NULL,
  labels TEXT NOT NULL,
  secret_hash BLOB NOT NULL,
  uses_max INTEGER NOT NULL,
  uses INTEGER NOT NULL DEFAULT 0,
  created_by TEXT NOT NULL,
  created_us INTEGER NOT NULL,
  expires_us INTEGER NOT NULL,
  revoked_us INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE TABLE revoked_serials (
  serial TEXT PRIMARY KEY,
  revoked_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The newest picture of each host's containers, so that a restarted controller can show what it
-- knew. Written at leisure; losing the last seconds of it loses nothing that was acknowledged.
CREATE TABLE pictures (
  host BLOB PRIMARY KEY,
  as_of_us INTEGER NOT NULL,
  payload BLOB NOT NULL                      -- encoded InventoryPart
) STRICT, WITHOUT ROWID;
