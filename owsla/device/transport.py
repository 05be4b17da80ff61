"""Names of the transport modules, until all importers name these modules."""

from .socket_transport import CLOSING_TIMEOUT as CLOSING_TIMEOUT
from .socket_transport import EXPECTED as EXPECTED
from .socket_transport import SocketTransport as SocketTransport
from .socket_transport import explain as explain
from .socket_transport import without_goodbye as without_goodbye
from .tls_transport import TLSTransport as TLSTransport
