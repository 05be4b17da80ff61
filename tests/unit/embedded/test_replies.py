"""Names of direct reply-to."""

from twisted.trial.unittest import SynchronousTestCase

from owsla.broker.direct_reply import is_direct, is_valid
from owsla.embedded.replies import reply_name


class ReplyNameTests(SynchronousTestCase):
    def test_as_rabbitmq(self) -> None:
        """A name has the form of RabbitMQ's, without which Owsla sends no report to it. No two are equal."""
        names = {reply_name() for _ in range(100)}
        self.assertEqual(len(names), 100)
        for name in names:
            self.assertTrue(is_direct(name))
            self.assertTrue(is_valid(name), name)
            self.assertLessEqual(len(name), 255)
