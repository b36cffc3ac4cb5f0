/* The header must be C; what it declares must link. */
#include <gridpool/gridpool.h>
#include <string.h>

int c_header_works(void);

int c_header_works(void) {
  gridpool_chat* chat = gridpool_open("/nowhere/at/all", NULL);
  return chat == NULL && strstr(gridpool_last_error(), "no bundle at /nowhere/at/all") != NULL && gridpool_version()[0] != '\0' &&
         gridpool_open(NULL, NULL) == NULL && strstr(gridpool_last_error(), "bundle is NULL") != NULL &&
         gridpool_ask(NULL, NULL, "?", NULL, NULL, NULL) == GRIDPOOL_USER_ERROR && gridpool_encode(NULL, "x") == NULL;
}
