-- Rollouts of versions of the agent: each is one value, which a pure machine moves on.
CREATE TABLE rollouts (
  id TEXT PRIMARY KEY,
  tenant TEXT NOT NULL,
  created_us INTEGER NOT NULL,
  open INTEGER NOT NULL,                     -- 1: it has no end yet
  asked_by TEXT NOT NULL,                    -- who, in words
  token_id TEXT NOT NULL,
  payload TEXT NOT NULL                      -- JSON
) STRICT, WITHOUT ROWID;
CREATE INDEX rollouts_open ON rollouts (created_us) WHERE open = 1;
