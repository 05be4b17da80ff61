"""Application with the service of `twistd owsla`, for `twistd -ny tac/owsla.tac`.

Configure it by environment variables (`OWSLA_PORT`, …), or by a file that the variable `OWSLA_CONFIG` names.
"""

from twisted.application import service

from owsla.config.usage import Options, exit_with
from owsla.errors import ConfigError
from owsla.tap import makeService

options = Options()
options.parseOptions([])
application = service.Application("owsla")
try:
    makeService(options).setServiceParent(application)
except ConfigError as error:
    exit_with(error)
