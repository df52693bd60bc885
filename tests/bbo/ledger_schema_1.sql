BEGIN TRANSACTION;
CREATE TABLE campaigns (
	id INTEGER NOT NULL, 
	uid VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	created_at FLOAT NOT NULL, 
	budget INTEGER NOT NULL CHECK (budget >= 1), 
	config JSON NOT NULL, 
	fence INTEGER NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (uid)
);
INSERT INTO "campaigns" VALUES(1,'d332cfaa6184466e84efbea29a8c23b2','old',1000.0,8,'{"campaign": {"objective": "value", "batch_size": 2, "seed": 0}, "prior": {"type": "x", "design_shape": [2]}}',1);
CREATE TABLE evaluations (
	query_id INTEGER NOT NULL, 
	state VARCHAR NOT NULL, 
	error VARCHAR, 
	cost FLOAT NOT NULL CHECK (abs(cost) <= 1.7976931348623157e308), 
	metadata JSON NOT NULL, 
	PRIMARY KEY (query_id), 
	CHECK (state IN ('done', 'failed') AND (state = 'failed') = (error IS NOT NULL)), 
	FOREIGN KEY(query_id, state) REFERENCES queries (id, state) DEFERRABLE INITIALLY DEFERRED
);
INSERT INTO "evaluations" VALUES(1,'done',NULL,1.0,'{}');
INSERT INTO "evaluations" VALUES(2,'failed','it''s crossed',1.0,'{}');
CREATE TABLE events (
	id INTEGER NOT NULL, 
	campaign_id INTEGER NOT NULL, 
	at FLOAT NOT NULL, 
	kind VARCHAR NOT NULL, 
	detail JSON NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(campaign_id) REFERENCES campaigns (id)
);
INSERT INTO "events" VALUES(1,1,1001.0,'driven','{"fence": 1, "pid": 6360}');
INSERT INTO "events" VALUES(2,1,1006.0,'in_doubt','{"queries": [3, 4]}');
CREATE TABLE meta (
	schema_version INTEGER NOT NULL, 
	PRIMARY KEY (schema_version)
);
INSERT INTO "meta" VALUES(1);
CREATE TABLE outcomes (
	query_id INTEGER NOT NULL, 
	name VARCHAR NOT NULL, 
	value FLOAT NOT NULL CHECK (abs(value) <= 1.7976931348623157e308), 
	noise_std FLOAT CHECK (noise_std >= 0 AND abs(noise_std) <= 1.7976931348623157e308), 
	PRIMARY KEY (query_id, name), 
	FOREIGN KEY(query_id) REFERENCES evaluations (query_id)
);
INSERT INTO "outcomes" VALUES(1,'value',1.5,0.1);
INSERT INTO "outcomes" VALUES(1,'drag',0.25,NULL);
CREATE TABLE queries (
	id INTEGER NOT NULL, 
	campaign_id INTEGER NOT NULL, 
	round INTEGER NOT NULL, 
	slot INTEGER NOT NULL, 
	"key" VARCHAR NOT NULL, 
	state VARCHAR NOT NULL CHECK (state IN ('reserved', 'sent', 'done', 'failed', 'in_doubt')), 
	artifact VARCHAR NOT NULL, 
	"row" INTEGER NOT NULL CHECK ("row" >= 0), 
	predicted_mean FLOAT, 
	predicted_std FLOAT, 
	provenance JSON NOT NULL, 
	reserved_at FLOAT NOT NULL, 
	sent_at FLOAT, 
	ended_at FLOAT, 
	n_sent INTEGER NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(campaign_id, round) REFERENCES rounds (campaign_id, number), 
	UNIQUE (campaign_id, round, slot), 
	UNIQUE (id, state), 
	UNIQUE ("key")
);
INSERT INTO "queries" VALUES(1,1,0,0,'d332cfaa6184466e84efbea29a8c23b2-0-0','done','665ef8d05d6a808b4d4060f60cdf135dfb1dbfb7cf616772846973fdd0f09e1b',0,NULL,NULL,'{"from": "prior"}',1002.0,1003.0,1004.0,1);
INSERT INTO "queries" VALUES(2,1,0,1,'d332cfaa6184466e84efbea29a8c23b2-0-1','failed','665ef8d05d6a808b4d4060f60cdf135dfb1dbfb7cf616772846973fdd0f09e1b',1,NULL,NULL,'{"from": "prior"}',1002.0,1003.0,1005.0,1);
INSERT INTO "queries" VALUES(3,1,0,2,'d332cfaa6184466e84efbea29a8c23b2-0-2','in_doubt','665ef8d05d6a808b4d4060f60cdf135dfb1dbfb7cf616772846973fdd0f09e1b',2,NULL,NULL,'{"from": "prior"}',1002.0,1003.0,NULL,1);
INSERT INTO "queries" VALUES(4,1,0,3,'d332cfaa6184466e84efbea29a8c23b2-0-3','in_doubt','665ef8d05d6a808b4d4060f60cdf135dfb1dbfb7cf616772846973fdd0f09e1b',3,NULL,NULL,'{"from": "prior"}',1002.0,1003.0,NULL,1);
INSERT INTO "queries" VALUES(5,1,0,4,'d332cfaa6184466e84efbea29a8c23b2-0-4','sent','665ef8d05d6a808b4d4060f60cdf135dfb1dbfb7cf616772846973fdd0f09e1b',4,NULL,NULL,'{"from": "prior"}',1002.0,1007.0,NULL,1);
CREATE TABLE rounds (
	campaign_id INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	seed INTEGER NOT NULL, 
	summary JSON NOT NULL, 
	artifact VARCHAR, 
	PRIMARY KEY (campaign_id, number), 
	FOREIGN KEY(campaign_id) REFERENCES campaigns (id)
);
INSERT INTO "rounds" VALUES(1,0,7,'{"ess_share": 0.5}','665ef8d05d6a808b4d4060f60cdf135dfb1dbfb7cf616772846973fdd0f09e1b');
CREATE INDEX queries_by_state ON queries (campaign_id, state);
CREATE TRIGGER query_starts BEFORE INSERT ON queries WHEN NEW.state <> 'reserved' BEGIN SELECT RAISE(ABORT, 'a query starts as reserved'); END;
CREATE TRIGGER query_moves BEFORE UPDATE OF state ON queries WHEN NOT ((OLD.state = 'reserved' AND NEW.state = 'sent') OR (OLD.state = 'sent' AND NEW.state = 'done') OR (OLD.state = 'sent' AND NEW.state = 'failed') OR (OLD.state = 'sent' AND NEW.state = 'in_doubt') OR (OLD.state = 'in_doubt' AND NEW.state = 'reserved') OR (OLD.state = 'in_doubt' AND NEW.state = 'done') OR (OLD.state = 'in_doubt' AND NEW.state = 'failed')) BEGIN SELECT RAISE(ABORT, 'illegal transition of a query'); END;
CREATE TRIGGER query_ends BEFORE UPDATE OF state ON queries WHEN NEW.state IN ('done', 'failed') AND NOT (EXISTS (SELECT 1 FROM evaluations WHERE query_id = NEW.id AND state = NEW.state) AND EXISTS (SELECT 1 FROM outcomes WHERE query_id = NEW.id) = (NEW.state = 'done')) BEGIN SELECT RAISE(ABORT, 'done needs an evaluation with outcomes, failed one with an error'); END;
CREATE TRIGGER query_is_fixed BEFORE UPDATE OF id, campaign_id, round, slot, key, artifact, row, predicted_mean, predicted_std, provenance, reserved_at ON queries WHEN 1 BEGIN SELECT RAISE(ABORT, 'a reserved query is never rewritten'); END;
CREATE TRIGGER outcome_of_open BEFORE INSERT ON outcomes WHEN NOT EXISTS (SELECT 1 FROM evaluations JOIN queries ON queries.id = evaluations.query_id WHERE query_id = NEW.query_id AND evaluations.state = 'done' AND queries.state IN ('sent', 'in_doubt')) BEGIN SELECT RAISE(ABORT, 'outcomes come with their evaluation'); END;
CREATE TRIGGER evaluation_is_fixed BEFORE UPDATE ON evaluations WHEN 1 BEGIN SELECT RAISE(ABORT, 'an evaluation is never rewritten'); END;
CREATE TRIGGER outcome_is_fixed BEFORE UPDATE ON outcomes WHEN 1 BEGIN SELECT RAISE(ABORT, 'an outcome is never rewritten'); END;
CREATE TRIGGER campaigns_stay BEFORE DELETE ON campaigns WHEN 1 BEGIN SELECT RAISE(ABORT, 'campaigns are never deleted'); END;
CREATE TRIGGER rounds_stay BEFORE DELETE ON rounds WHEN 1 BEGIN SELECT RAISE(ABORT, 'rounds are never deleted'); END;
CREATE TRIGGER queries_stay BEFORE DELETE ON queries WHEN 1 BEGIN SELECT RAISE(ABORT, 'queries are never deleted'); END;
CREATE TRIGGER evaluations_stay BEFORE DELETE ON evaluations WHEN 1 BEGIN SELECT RAISE(ABORT, 'evaluations are never deleted'); END;
CREATE TRIGGER outcomes_stay BEFORE DELETE ON outcomes WHEN 1 BEGIN SELECT RAISE(ABORT, 'outcomes are never deleted'); END;
CREATE TRIGGER events_stay BEFORE DELETE ON events WHEN 1 BEGIN SELECT RAISE(ABORT, 'events are never deleted'); END;
CREATE TRIGGER campaign_only_grows BEFORE UPDATE ON campaigns WHEN NEW.budget < OLD.budget OR NEW.fence < OLD.fence BEGIN SELECT RAISE(ABORT, 'budget and fence only grow'); END;
COMMIT;