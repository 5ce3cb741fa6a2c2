-- From schema version 4 to 5: a dead letter is found by its message_id.
CREATE INDEX dead_letter_message_id ON dead_letter (message_id);
