"""`autogaze train` as a whole: the stages in order, and what was learned."""
