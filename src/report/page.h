// SPDX-License-Identifier: Apache-2.0
// A comparison as one page of HTML that needs nothing else: styles, scripts, the charting library
// (Chart.js, MIT licence, from Debian's package) and the numbers are in it, and it may load
// nothing. The template is page.html with page.css and page.js, put into the program when it is
// built.
#pragma once

#include <string>

#include "report/comparison.h"

namespace quern {

std::string report_page(const Comparison& comparison);

// JSON that is safe within a <script> element: no "<", so that nothing in it ends the element, and
// bytes that are not UTF-8 replaced.
std::string script_json(const Json& json);

}  // namespace quern
