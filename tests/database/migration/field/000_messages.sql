-- The Viewer's table as it is in the field, before its own migrations.
CREATE TABLE messages (
    id SERIAL PRIMARY KEY,
    conversation_id INTEGER,
    twilio_sid VARCHAR(100) UNIQUE NOT NULL,
    direction VARCHAR(50) NOT NULL,
    status VARCHAR(50) NOT NULL,
    from_number VARCHAR(20) NOT NULL,
    to_number VARCHAR(20) NOT NULL,
    duration INTEGER,
    price DECIMAL(10, 4),
    price_unit VARCHAR(10),
    start_time TIMESTAMP,
    end_time TIMESTAMP,
    recording_url TEXT,
    parent_call_sid VARCHAR(100),
    metadata JSONB DEFAULT '{}',
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);

CREATE INDEX idx_messages_conversation ON messages(conversation_id);

-- Calls from before anybody thought of events.
INSERT INTO messages (conversation_id, twilio_sid, direction, status, from_number, to_number, duration, price, price_unit,
                      start_time, end_time, metadata, created_at)
SELECT n, 'CA' || lpad(to_hex(n), 32, '0'),
       CASE n % 2 WHEN 0 THEN 'inbound' ELSE 'outbound-api' END,
       (ARRAY['completed', 'busy', 'no-answer', 'canceled', 'failed', 'completed', 'ringing', 'in-progress'])[1 + n % 8],
       '+1555010' || lpad((n % 10000)::text, 4, '0'), '+15550200000',
       CASE WHEN n % 8 IN (0, 5) THEN n % 600 END,
       CASE WHEN n % 8 IN (0, 5) THEN -0.0085 END,
       CASE WHEN n % 8 IN (0, 5) THEN 'USD' END,
       TIMESTAMP '2024-03-10 01:30:00' + n * INTERVAL '7 minutes',
       CASE WHEN n % 8 IN (0, 5) AND n % 3 = 0
            THEN TIMESTAMP '2024-03-10 01:30:00' + n * INTERVAL '7 minutes' + (n % 600) * INTERVAL '1 second' END,
       '{"note": "mine"}',
       TIMESTAMP '2024-03-10 01:30:05' + n * INTERVAL '7 minutes'
FROM generate_series(1, 2500) AS n;
