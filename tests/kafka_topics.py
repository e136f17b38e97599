"""Topics that no other test uses: the `topics` fixture."""

from streamactors.testing import KafkaTopics as Topics

__all__ = ["Topics"]
